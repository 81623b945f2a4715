# shellcheck shell=bash
# An image of nginx on Debian 12 minbase, for tools/guest. Sourced after guest.sh
# and minbase.sh.
# shellcheck disable=SC2154,SC2016 # scratch and inputs are set in tools/guest; $1 is the hook's

make_nginx() {
    local tar=$scratch/root.tar layout=$1/nginx
    debian_sources bookworm >"$scratch/sources"
    say "fetching and unpacking Debian 12 minbase with nginx"
    chmod 755 "$scratch"
    # As in other images of it: what it logs goes to the standard streams.
    SOURCE_DATE_EPOCH=1 mmdebstrap --quiet --variant=minbase --include=nginx-light \
        --dpkgopt='path-exclude=/usr/share/doc/*' --dpkgopt='path-exclude=/usr/share/man/*' \
        --dpkgopt='path-exclude=/usr/share/locale/*' \
        --customize-hook='ln -sf /dev/stdout "$1/var/log/nginx/access.log"' \
        --customize-hook='ln -sf /dev/stderr "$1/var/log/nginx/error.log"' \
        bookworm "$tar" "$scratch/sources" >"$scratch/mmdebstrap" 2>&1 </dev/null ||
        { tail -n 20 "$scratch/mmdebstrap" >&2; die "mmdebstrap failed"; }
    tar -xOf "$tar" ./var/lib/dpkg/status | awk '/^Package:/ { p = $2 } /^Version:/ { print p, $2 }' >"$scratch/packages"
    input "minbase and nginx ($(wc -l <"$scratch/packages") packages)" 12 "$scratch/packages"
    umoci init --layout "$layout"
    umoci new --image "$layout:latest"
    umoci raw add-layer --image "$layout:latest" "$tar"
    umoci config --image "$layout:latest" --config.cmd nginx --config.cmd -g --config.cmd 'daemon off;' \
        --config.exposedports 80/tcp --config.stopsignal SIGQUIT
}
