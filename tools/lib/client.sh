# shellcheck shell=bash
# A public client library of Firecracker's API from PyPI, with which a guest
# test drives the monitor. Sourced by tools/test after common.sh.

# client_library: the pinned packages of tests/guest/client/requirements.txt,
# into target/client/packages. The machine's own Python packages stay as they are.
client_library() {
    local folder=$REPO/target/client list=$REPO/tests/guest/client/requirements.txt key
    need_packages python3 python3-pip
    key=$({ cat "$list"; python3 -V; } | sha256sum | cut -c 1-16)
    [[ $(cat "$folder/key" 2>/dev/null) != "$key" ]] || return 0
    say "installing firecracker-python into ${folder#"$REPO/"}"
    rm -rf "$folder"; mkdir -p "$folder"
    python3 -m pip install --quiet --disable-pip-version-check --root-user-action=ignore --no-deps \
        --only-binary :all: --target "$folder/packages" --requirement "$list"
    echo "$key" >"$folder/key"
}
