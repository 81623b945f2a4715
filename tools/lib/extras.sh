# shellcheck shell=bash
# What guest tests need beside guests: both kinds of virtiofsd, iperf3, and a
# driver that lies. Sourced by tools/guest after common.sh and guest.sh.
# shellcheck disable=SC2154 # scratch is set in tools/guest

# bundle OUT RELEASE PROGRAM LIBRARY... -- PACKAGE...: a program of a Debian
# release with its libraries: its own loader starts it, by a script of its name.
bundle() {
    local out=$1 release=$2 program=$3 package name version deb library tree=$scratch/$2 libraries=()
    shift 3
    while [[ $1 != -- ]]; do libraries+=("$1"); shift; done
    shift
    mkdir -p "$tree" "$out"
    for package in "$@"; do
        read -r name version < <(package_of "$release" "$package")
        deb=$(fetch_deb "$release" "$name" "$version")
        dpkg-deb -x "$deb" "$tree"
        input "$name" "$version" "$deb"
    done
    for library in ld-linux-x86-64.so.2 libc.so.6 libm.so.6 "${libraries[@]}"; do
        cp -L "$(find "$tree/lib" "$tree/usr/lib" "$tree"/usr/lib64 -name "$library" 2>/dev/null | head -n 1)" "$out/"
    done
    cp "$tree/$program" "$out/program"
    cat >"$out/${program##*/}" <<'S'
#!/bin/sh
here=$(dirname "$(readlink -f "$0")")
exec "$here/ld-linux-x86-64.so.2" --library-path "$here" "$here/program" "$@"
S
    chmod 755 "$out/${program##*/}"
}

make_virtiofsd() {
    bundle "$1/rust" trixie usr/libexec/virtiofsd libcap-ng.so.0 libgcc_s.so.1 libseccomp.so.2 -- \
        virtiofsd libc6 libcap-ng0 libgcc-s1 libseccomp2
    bundle "$1/c" bookworm usr/lib/qemu/virtiofsd libcap-ng.so.0 libseccomp.so.2 libgmodule-2.0.so.0 \
        libglib-2.0.so.0 libnuma.so.1 libpcre2-8.so.0 -- \
        qemu-system-common libc6 libcap-ng0 libseccomp2 libglib2.0-0 libnuma1 libpcre2-8-0
}

# The same files for the host and, on a small ext4, for any guest.
make_iperf3() {
    bundle "$1" bookworm usr/bin/iperf3 libiperf.so.0 libsctp.so.1 libssl.so.3 libcrypto.so.3 -- \
        iperf3 libc6 libiperf0 libsctp1 libssl3
    mke2fs -q -t ext4 -O ^has_journal -m 0 -d "$1" "$scratch/iperf3.ext4" 16M
    mv "$scratch/iperf3.ext4" "$1/"
}

# A disk whose content is the program: any guest can copy and run it.
make_lies() {
    gcc -static -O1 -s -Wl,--build-id=none -o "$1/lies.img" "$TOOLS/lib/guest/lies.c"
    truncate --size=%4096 "$1/lies.img"
    input lies.c 1 "$TOOLS/lib/guest/lies.c"
}

# Images for containers, as OCI layouts: images/busybox has one layer, a program of many names and three users.
make_images() {
    local layout=$1/busybox bundle=$scratch/bundle name
    umoci init --layout "$layout"
    umoci new --image "$layout:latest"
    umoci unpack --image "$layout:latest" "$bundle" 2>&1 | { grep -v '^ *•' >&2 || true; }
    mkdir -p "$bundle/rootfs"/{bin,etc,tmp,root,srv}
    chmod 1777 "$bundle/rootfs/tmp"
    cp /bin/busybox "$bundle/rootfs/bin/"
    for name in $(/bin/busybox --list); do [[ $name == busybox ]] || ln -s busybox "$bundle/rootfs/bin/$name"; done
    printf '%s\n' root:x:0:0:root:/root:/bin/sh web:x:33:33::/srv:/bin/sh >"$bundle/rootfs/etc/passwd"
    printf '%s\n' root:x:0: web:x:33: >"$bundle/rootfs/etc/group"
    umoci repack --image "$layout:latest" "$bundle"
    umoci config --image "$layout:latest" --config.cmd sh
    rm -rf "$bundle"
    input busybox-static "$(version_of busybox-static)" /bin/busybox
}
