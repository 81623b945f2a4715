# shellcheck shell=bash
# The modules of Debian's kernels as their packages have them, for `vmm run --modules`. Sourced by tools/guest after guest.sh.
# shellcheck disable=SC2154 # root_modules is set in guest.sh

# In OUT/debian12 and OUT/debian13, as in /lib/modules/VERSION: depmod's lists, and of the modules those that a guest may
# want, with what they need. modprobe says which; so what vmm gets wrong is missing here.
make_modules() { # OUT
    local release name from file
    for release in bookworm/debian12 trixie/debian13; do
        debian_kernel "${release%/*}"
        input "${KERNEL_PACKAGE% *}" "${KERNEL_PACKAGE#* }" "$KERNEL_DEB"
        from=$KERNEL_DIR/lib/modules/$KERNEL_RELEASE
        mkdir -p "$1/${release#*/}"
        for file in dep alias softdep builtin; do cp "$from/modules.$file" "$1/${release#*/}/"; done
        for name in "${root_modules[@]}" nft_chain_nat; do
            /sbin/modprobe -d "$KERNEL_DIR" -S "$KERNEL_RELEASE" --show-depends "$name" 2>/dev/null || true
        done | awk '$1 == "insmod" { print $2 }' | LC_ALL=C sort -u | while read -r file; do
            install -D -m 644 "$file" "$1/${release#*/}/${file#"$from/"}"
        done
    done
}
