#!/bin/sh
# Compiles `kernels` for 64-bit Arm and runs its tests of the instruction levels in an emulator: every level there, too,
# gives the same bits. Usage: arm.sh FOLDER [cargo test arguments]
#
# A Rust standard library for that machine, and the compiler it belongs to, come as packages of Debian's unstable
# distribution, unpacked into FOLDER and installed nowhere; linker and emulator are packages of this system. Where these
# cannot be had the check is skipped, and says so.
set -eu
folder=$1
shift
target=aarch64-unknown-linux-gnu
keys=/usr/share/keyrings/debian-archive-keyring.gpg

skip() {
    echo "SKIPPED: kernels for 64-bit Arm were not compiled ($1)"
    exit 0
}

unpack() {
    command -v apt-get >/dev/null && command -v dpkg-deb >/dev/null || skip "not a Debian system"
    [ -r "$keys" ] || skip "no Debian keys"
    mirror=$(apt-cache policy | sed -n 's|.* \(http[^ ]*/debian/\{0,1\}\) .*main.*|\1|p' | head -n 1)
    [ -n "$mirror" ] || skip "no Debian mirror is set up"
    rm -rf "$folder"
    mkdir -p "$folder/lists/partial" "$folder/archives/partial" "$folder/debs" "$folder/root"
    echo "deb [arch=amd64,arm64 signed-by=$keys] $mirror unstable main" >"$folder/sources.list"
    apt="-o Dir::Etc::sourcelist=$folder/sources.list -o Dir::Etc::sourceparts=/dev/null -o Dir::State::lists=$folder/lists
        -o Dir::Cache=$folder -o APT::Architectures=amd64,arm64 -o Acquire::Languages=none -qq"
    # shellcheck disable=SC2086
    apt-get $apt update >/dev/null 2>&1 || skip "the package lists cannot be had"
    # shellcheck disable=SC2086
    needed=$(apt-cache $apt depends --recurse --no-recommends --no-suggests --no-conflicts --no-breaks --no-replaces \
        --no-enhances libstd-rust-dev:amd64 | sed -n 's/^\([a-z][^:]*\)$/\1/p; s/^\([a-z].*\):amd64$/\1/p' | sort -u)
    # shellcheck disable=SC2086
    (cd "$folder/debs" && apt-get $apt download rustc libstd-rust-dev:arm64 $needed >/dev/null 2>&1) \
        || skip "the compiler's packages cannot be had"
    for package in "$folder"/debs/*.deb; do
        dpkg-deb -x "$package" "$folder/root"
    done
    rm -rf "$folder/debs" "$folder/lists"
    # The unpacked compiler runs on the C library that came with it, not on this system's.
    cat >"$folder/rustc" <<END
#!/bin/sh
root=$folder/root
exec "\$root/usr/lib64/ld-linux-x86-64.so.2" --library-path "\$root/usr/lib/x86_64-linux-gnu" \\
    "\$root/usr/bin/rustc" --sysroot "\$root/usr" "\$@"
END
    chmod +x "$folder/rustc"
    "$folder/rustc" --version >/dev/null 2>&1 || skip "the unpacked compiler does not run"
    touch "$folder/done"
}

[ "$(uname -m)" = x86_64 ] || skip "only from x86-64"
[ -e "$folder/done" ] || unpack
if ! command -v aarch64-linux-gnu-gcc >/dev/null || ! command -v qemu-aarch64 >/dev/null; then
    apt-get install -qq -y --no-install-recommends gcc-aarch64-linux-gnu libc6-dev-arm64-cross qemu-user >/dev/null 2>&1 \
        || skip "no linker or emulator"
fi
export RUSTC="$folder/rustc"
export CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_LINKER=aarch64-linux-gnu-gcc
export CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_RUNNER="qemu-aarch64 -L /usr/aarch64-linux-gnu"
[ $# -gt 0 ] || set -- --lib
cargo test --release --locked -p kernels --target "$target" --target-dir "$folder/target" "$@"
