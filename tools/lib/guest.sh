# shellcheck shell=bash
# How tools/guest makes each guest. Sourced after common.sh and kernel.sh. Each
# make_NAME builds into the folder $1 and names what went in with `input`.
# shellcheck disable=SC2034,SC2154 # scratch and inputs are set in tools/guest

# The modules of a Debian guest: devices, file systems, and nothing else.
guest_modules=(virtio_pci virtio_mmio virtio_blk virtio_rng virtio_net virtio_console virtio_balloon virtio_mem
    virtio_pmem nd_pmem vmw_vsock_virtio_transport virtiofs pvpanic_mmio pvpanic_pci button evdev ptp_kvm
    ext4 overlay squashfs erofs)
# A root file system has more room: containers and networks as well.
root_modules=("${guest_modules[@]}" tun veth bridge br_netfilter macvlan dummy loop dm_mod autofs4 nf_tables nft_ct nft_nat
    nft_masq nft_redir nft_reject_inet nft_fib_inet nft_compat xt_MASQUERADE xt_conntrack xt_addrtype xt_comment xt_mark)

# input NAME VERSION FILE: into the manifest.
input() { printf '{"name": "%s", "version": "%s", %s}\n' "$1" "$2" "$(facts "$3")" >>"$inputs"; }
facts() { printf '"sha256": "%s", "size": %s' "$(sha256sum <"$1" | cut -c 1-64)" "$(stat -c %s "$1")"; }
version_of() { dpkg-query -W -f '${Version}' "$1"; }
# A hard link where that works: the cache holds the same bytes once.
put() { cp -l "$1" "$2" 2>/dev/null || cp "$1" "$2"; }

# The tree that all initrds and the busybox root start from.
base_tree() {
    mkdir -p "$1"/{bin,dev,proc,sys}
    cp /bin/busybox "$1/bin/"
    local program
    for program in mark vsock; do
        gcc -static -nostdlib -no-pie -Os -ffreestanding -fno-stack-protector -fno-asynchronous-unwind-tables \
            -Wl,--build-id=none,-z,noseparate-code -s -o "$1/bin/$program" "$TOOLS/lib/guest/$program.c"
        input "$program.c" 1 "$TOOLS/lib/guest/$program.c"
    done
    input busybox-static "$(version_of busybox-static)" /bin/busybox
}

# make_initrd OUT [KERNEL_DIR]: with the modules of that kernel, or with none.
make_initrd() {
    local tree=$scratch/initrd absent
    base_tree "$tree"
    mkdir -p "$tree/modules"; : >"$tree/modules/list"
    if [[ -n ${2:-} ]]; then
        absent=$(put_modules "$2" "$tree" "${guest_modules[@]}" | tr '\n' ' ')
        [[ -z $absent ]] || say "this kernel has no ${absent% }"
    fi
    install -m 755 "$TOOLS/lib/guest/init" "$tree/init"
    input init 1 "$TOOLS/lib/guest/init"
    pack_initrd "$tree" "$1"
}

make_debian() { # OUT RELEASE
    debian_kernel "$2"
    input "${KERNEL_PACKAGE% *}" "${KERNEL_PACKAGE#* }" "$KERNEL_DEB"
    put "$KERNEL_DIR/boot/vmlinuz" "$1/bzImage"
    put "$KERNEL_DIR/boot/config" "$1/config"
    put "$KERNEL_DIR/vmlinux" "$1/vmlinux"
    without_notes "$1/vmlinux" "$1/vmlinux-nopvh"
    make_initrd "$1/initrd" "$KERNEL_DIR"
}
make_debian12() { make_debian "$1" bookworm; }
make_debian13() { make_debian "$1" trixie; }

make_tuned() {
    local name version
    "$TOOLS/kernel" --out "$scratch/tuned"
    read -r name version <"$scratch/tuned/source"
    input "$name" "$version" "$(fetch_deb bookworm "$name" "$version")"
    input guest.config 1 "$REPO/resources/kernel/guest.config"
    mv "$scratch"/tuned/{bzImage,vmlinux,vmlinux-nopvh,config,System.map} "$1/"
    make_initrd "$1/initrd"
}

# The initrd for tools/bench: /init is mark itself.
make_bench() {
    local tree=$scratch/bench
    mkdir -p "$scratch/base" "$tree/proc"
    base_tree "$scratch/base"
    cp "$scratch/base/bin/mark" "$tree/init"
    pack_initrd "$tree" "$1/initrd"
}

# ext4_image TREE IMAGE SIZE UUID: without mounting; sparse; the same bytes for
# the same tree. TREE is as seen by the caller (root, or within fakeroot).
ext4_image() {
    find "$1" -exec touch -h -d @0 {} +
    rm -f "$2"
    E2FSPROGS_FAKE_TIME=1 SOURCE_DATE_EPOCH=1 mke2fs -q -t ext4 -d "$1" -L root -U "$4" \
        -E "hash_seed=$4,root_owner=0:0,lazy_itable_init=0,lazy_journal_init=0" -m 0 "$2" "$3" 2>&1 | sed "/^Creating regular file/d" >&2
}
# plain_inodes IMAGE TREE: all of root's, all of one time. mke2fs takes both over
# from the tree, where another user cannot set the one, nor anybody ctime.
plain_inodes() {
    (cd "$2" && find . -printf '%P\n') | awk '{
        for (i = split("atime=0x0 mtime=0x0 ctime=0x0 crtime=0x0 uid=0 gid=0", set); i; i--) {
            split(set[i], field, "="); printf "set_inode_field \"/%s\" %s %s\n", $0, field[1], field[2] } }' |
        E2FSPROGS_FAKE_TIME=1 debugfs -w -f - "$1" >"$scratch/debugfs" 2>&1
    if grep -v '^debugfs' "$scratch/debugfs" >&2; then die "debugfs could not set all inodes of $1"; fi
}

make_busybox() {
    local tree=$scratch/busybox f=$TOOLS/lib/guest/busybox
    base_tree "$tree"
    mkdir -p "$tree"/{etc/init.d,root,run,tmp,mnt,sbin,usr,lib,var,home}
    (cd "$tree" || exit; ln -s ../bin usr/bin; ln -s ../sbin usr/sbin; ln -s ../run var/run; ln -s ../tmp var/tmp
        for a in $(/bin/busybox --list); do [[ -e bin/$a ]] || ln -s busybox "bin/$a"; done
        for a in init poweroff reboot halt getty; do ln -sf ../bin/busybox "sbin/$a"; done)
    install -m 755 "$f/rcS" "$tree/etc/init.d/rcS"
    install -m 755 "$f/getty" "$tree/etc/getty"
    install -m 644 "$f/inittab" "$tree/etc/inittab"
    input busybox-root 1 "$f/rcS"
    mkdir -p "$tree/etc/acpi/PWRF"
    printf '#!/bin/sh\npoweroff\n' >"$tree/etc/acpi/PWRF/00000080"; chmod 755 "$tree/etc/acpi/PWRF/00000080"
    echo vmm >"$tree/etc/hostname"
    echo 'root::0:0:root:/root:/bin/sh' >"$tree/etc/passwd"
    echo 'root:x:0:' >"$tree/etc/group"
    echo '127.0.0.1 localhost vmm' >"$tree/etc/hosts"
    echo 'export PATH=/bin:/sbin PS1="root@vmm:\w# "' >"$tree/etc/profile"
    chmod 1777 "$tree/tmp"; chmod 700 "$tree/root"
    ext4_image "$tree" "$1/busybox.ext4" 64M 766d6d00-0000-4000-8000-000000000001
    plain_inodes "$1/busybox.ext4" "$tree"
}
