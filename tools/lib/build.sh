# shellcheck shell=bash
# The Rust toolchain and the release binary, for tools/test and tools/demo.
# Sourced after common.sh.

# Where cargo puts the release binary.
# shellcheck disable=SC2034 # read by those who source this file
RELEASE=${CARGO_TARGET_DIR:-$REPO/target}/x86_64-unknown-linux-gnu/release

# need_rust: puts a cargo on the PATH that is new enough, with rustfmt and clippy.
need_rust() {
    local want have part
    need_packages gcc libc6-dev
    want=$(sed -n 's/^rust-version = "\(.*\)"/\1/p' "$REPO/Cargo.toml")
    PATH=$PATH:${CARGO_HOME:-$HOME/.cargo}/bin
    have=$(cargo --version 2>/dev/null | awk '{ print $2 }') || have=none
    if [[ $(printf '%s\n' "$want" "$have" | sort -V | head -n 1) != "$want" || $have == none ]]; then
        if ! command -v rustup >/dev/null && apt-cache show rustup >/dev/null 2>&1; then need_packages rustup; fi
        command -v rustup >/dev/null ||
            die "this needs Rust $want or later, and found ${have:-none}; install it as rustup says, then run this again"
        say "installing Rust (found ${have:-none}, need $want)"
        rustup toolchain install --no-self-update --profile minimal stable >&2
        export RUSTUP_TOOLCHAIN=stable
    fi
    for part in fmt clippy; do
        cargo "$part" --version >/dev/null 2>&1 || rustup component add "${part/#fmt/rustfmt}" >&2 ||
            die "cargo $part is missing; install the toolchain's component ${part/#fmt/rustfmt}"
    done
}
