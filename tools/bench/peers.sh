#!/bin/sh
# Fetches the opponents' libraries from the package registries into a folder: llama.cpp as npm's
# @node-llama-cpp/linux-x64 builds it (a library per kind of processor, the best is chosen when it is loaded), and
# ik_llama.cpp as its Python package does.
set -eu
dir=$1
llama_version=3.22.1
ik_version=0.1.5
mkdir -p "$dir"
cd "$dir"

if [ ! -e llama.cpp/libllama.so ]; then
    npm install --loglevel error --no-audit --no-fund --no-package-lock --no-save --prefix npm \
        "@node-llama-cpp/linux-x64@$llama_version"
    rm -rf llama.cpp.part
    cp -r npm/node_modules/@node-llama-cpp/linux-x64/bins/linux-x64 llama.cpp.part
    (cd llama.cpp.part && ln -s libggml.v*.so libggml.so && ln -s libllama.v*.so libllama.so)
    mv llama.cpp.part llama.cpp
    rm -rf npm
fi

if [ ! -e ik_llama.cpp/ik_llama_cpp/lib/libllama.so ]; then
    python3 -m pip download --quiet --no-deps --only-binary :all: --platform manylinux_2_28_x86_64 \
        --python-version 3.11 --dest wheels "ik-llama-cpp-python==$ik_version"
    rm -rf ik_llama.cpp.part
    python3 -m zipfile -e wheels/ik_llama_cpp_python-"$ik_version"-*.whl ik_llama.cpp.part
    mv ik_llama.cpp.part ik_llama.cpp
    rm -rf wheels
fi
