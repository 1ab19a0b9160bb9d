# make demo         build, fetch the demo model, answer one question on three processes, keep serving
# make demo EXIT=1  the same, then stop
# make test         everything CI runs: lints, unit tests, end-to-end tests against real processes and a real etcd
# make storm        the long versions of the end-to-end tests
# make bench-split  throughput of split deployments against one process, as JSON
# make arm          kernels for 64-bit Arm: compiled, and their operations run in an emulator
# make fuzz         each fuzz target for FUZZ_SECONDS (needs cargo-fuzz and a nightly toolchain)

SHELL := /bin/sh
MAKE_DIR := .make
BATON := target/release/baton
VENV := $(MAKE_DIR)/venv
ETCD := $(MAKE_DIR)/etcd/etcd
BUF := $(MAKE_DIR)/node/node_modules/.bin/buf
FUZZ_SECONDS ?= 60
EXIT ?=

export BATON_BIN = $(CURDIR)/$(BATON)
export BATON_ETCD = $(CURDIR)/$(ETCD)
export BATON_DEMO_MODEL = $(shell cat $(MAKE_DIR)/model-path 2>/dev/null)

.PHONY: demo test unit e2e storm bench-split arm lint fmt clippy proto-lint deny doc fuzz build tools model clean

demo: build
	@$(BATON) demo $(if $(EXIT),--exit)

build:
	cargo build --release --locked -p baton

test: lint unit e2e arm

unit: tools model
	@$(MAKE) --no-print-directory run-unit

.PHONY: run-unit run-e2e run-storm
run-unit:
	@if cargo nextest --version >/dev/null 2>&1; \
	then cargo nextest run --release --locked --workspace --no-fail-fast; \
	else cargo test --release --locked --workspace --no-fail-fast; fi

e2e: build tools model
	@$(MAKE) --no-print-directory run-e2e

run-e2e:
	$(VENV)/bin/python -m pytest -q --maxfail=5 tests/e2e

storm: build tools model
	@BATON_STORM=1 $(MAKE) --no-print-directory run-e2e

bench-split: build tools model
	@$(VENV)/bin/python tools/bench_split.py

arm:
	sh tools/arm.sh $(CURDIR)/$(MAKE_DIR)/arm

lint: fmt clippy proto-lint

fmt:
	cargo fmt --all --check

clippy:
	cargo clippy --release --locked --workspace --all-targets -- -D warnings

proto-lint:
	@if command -v npm >/dev/null 2>&1; \
	then $(MAKE) --no-print-directory $(BUF) && cd proto && ../$(BUF) lint; \
	else echo "SKIPPED: buf lint of the protocol (it comes through npm, which is not here)"; fi

deny:
	cargo deny check bans licenses sources

doc:
	RUSTDOCFLAGS="-D warnings" cargo doc --no-deps --workspace --locked

fuzz:
	./fuzz/run all $(FUZZ_SECONDS)

tools: $(VENV)/.done $(ETCD)

model: build
	@mkdir -p $(MAKE_DIR)
	@$(BATON) pull smollm2 --print-path >$(MAKE_DIR)/model-path

$(VENV)/.done: tests/e2e/requirements.txt tests/e2e/protos.sh $(wildcard proto/baton/v1/*.proto)
	python3 -m venv $(VENV)
	$(VENV)/bin/pip install --quiet --requirement tests/e2e/requirements.txt
	sh tests/e2e/protos.sh $(VENV)/bin/python $(MAKE_DIR)/pb
	touch $@

$(ETCD):
	sh tools/etcd.sh $(MAKE_DIR)/etcd

$(BUF): tools/package.json
	mkdir -p $(MAKE_DIR)/node && cp tools/package.json $(MAKE_DIR)/node/
	cd $(MAKE_DIR)/node && npm install --loglevel error --no-audit --no-fund --no-package-lock
	touch $@

clean:
	rm -rf $(MAKE_DIR) target
