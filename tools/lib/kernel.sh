# shellcheck shell=bash
# Kernel images and the small initrds that go with them. Sourced after
# common.sh.

# Little-endian number of SIZE bytes at OFFSET of FILE.
number_at() { od -An -v -t "u$3" -j "$2" -N "$3" "$1" | tr -d ' '; }

# extract_vmlinux BZIMAGE OUT: the ELF kernel inside a bzImage, found by the
# setup header (payload_offset, payload_length: boot protocol 2.08) and
# unpacked by what its first bytes say. Prints the compression.
extract_vmlinux() {
    local image=$1 out=$2 sects start length magic kind tool part
    [[ $(od -An -c -j 514 -N 4 "$image" | tr -d ' ') == HdrS ]] || die "$image is not a bzImage"
    sects=$(number_at "$image" 497 1)
    start=$(((${sects/#0/4} + 1) * 512 + $(number_at "$image" 584 4)))
    length=$(number_at "$image" 588 4)
    part=$(mktemp "$out.XXXXXX")
    tail -c "+$((start + 1))" "$image" | head -c "$length" >"$part" || true
    magic=$(od -An -v -t x1 -N 4 "$part" | tr -d ' ')
    # All but gzip carry the unpacked size in four more bytes at the end.
    case $magic in
        1f8b*) kind=gzip tool='gzip -dc' ;;
        fd377a58) kind=xz tool='xz -dc' ;;
        5d0000*) kind=lzma tool='lzma -dc' ;;
        425a68*) kind=bzip2 tool='bzip2 -dc' ;;
        894c5a4f) kind=lzo tool='lzop -dc' ;;
        02214c18) kind=lz4 tool='lz4 -dc' ;;
        28b52ffd) kind=zstd tool='zstd -dcq' ;;
        7f454c46) kind=none tool=cat ;;
        *) rm -f "$part"; die "$image: unknown compression ($magic)" ;;
    esac
    if [[ $kind != gzip && $kind != none ]]; then
        head -c "-4" "$part" >"$part.x"; mv "$part.x" "$part"
    fi
    command -v "${tool%% *}" >/dev/null || need_packages "${kind/lzo/lzop}"
    # Whole or not at all: the ELF's own section table lies at its end.
    $tool <"$part" >"$out" 2>"$part.log" || { cat "$part.log" >&2; rm -f "$part"*; die "$image: bad $kind payload"; }
    rm -f "$part"*
    [[ $(od -An -v -t x1 -N 5 "$out" | tr -d ' ') == 7f454c4602 ]] || die "$image: the payload is not a 64-bit ELF"
    echo "$kind"
}

# without_notes VMLINUX OUT: a copy whose PT_NOTE headers are PT_NULL. With no
# PVH note to be found, a loader must use the 64-bit boot protocol.
without_notes() {
    local out=$2 phoff size count i at
    cp "$1" "$out"
    phoff=$(number_at "$out" 32 8) size=$(number_at "$out" 54 2) count=$(number_at "$out" 56 2)
    for ((i = 0; i < count; i++)); do
        at=$((phoff + i * size))
        [[ $(number_at "$out" "$at" 4) != 4 ]] ||
            head -c 4 /dev/zero | dd of="$out" bs=1 seek="$at" conv=notrunc status=none
    done
}

# debian_kernel RELEASE: Debian's cloud kernel of that release, unpacked in the
# cache with module dependencies worked out. Sets KERNEL_DIR (boot/vmlinuz,
# vmlinux, boot/config, lib/modules), KERNEL_RELEASE, KERNEL_PACKAGE and
# KERNEL_DEB. VMM_CACHE holds what was newest when first asked for;
# `rm -r $VMM_CACHE/apt` asks anew.
# shellcheck disable=SC2034
debian_kernel() {
    local mark="$CACHE/apt/$1/cloud-kernel" name version
    if [[ ! -e $mark ]]; then
        KERNEL_PACKAGE=$(package_of "$1" linux-image-cloud-amd64)
        mkdir -p "${mark%/*}"; echo "$KERNEL_PACKAGE" >"$mark"
    fi
    KERNEL_PACKAGE=$(<"$mark")
    read -r name version <<<"$KERNEL_PACKAGE"
    KERNEL_DIR="$CACHE/kernel/${name}_$version"
    KERNEL_DEB=$(fetch_deb "$1" "$name" "$version")
    if [[ ! -e $KERNEL_DIR/done ]]; then
        rm -rf "$KERNEL_DIR"; mkdir -p "$KERNEL_DIR"
        dpkg-deb -x "$KERNEL_DEB" "$KERNEL_DIR"
        [[ -d $KERNEL_DIR/lib/modules ]] || ln -s usr/lib "$KERNEL_DIR/lib"
        depmod -b "$KERNEL_DIR" "$(ls "$KERNEL_DIR/lib/modules")"
        mv "$KERNEL_DIR"/boot/vmlinuz-* "$KERNEL_DIR/boot/vmlinuz"
        mv "$KERNEL_DIR"/boot/config-* "$KERNEL_DIR/boot/config"
        extract_vmlinux "$KERNEL_DIR/boot/vmlinuz" "$KERNEL_DIR/vmlinux" >"$KERNEL_DIR/compression"
        touch "$KERNEL_DIR/done"
    fi
    KERNEL_RELEASE=$(ls "$KERNEL_DIR/lib/modules")
}

# put_modules KERNEL_DIR INTO MODULE...: copies the modules and all they need
# to INTO/modules, unpacked, and lists them in load order in INTO/modules/list.
# A name that this kernel has built in, or not at all, is passed over; the
# latter are printed.
put_modules() {
    local dir=$1 into=$2/modules version m line file name
    version=$(ls "$dir/lib/modules"); shift 2
    mkdir -p "$into"; : >"$into/list"
    for m in "$@"; do
        if ! line=$(/sbin/modprobe -d "$dir" -S "$version" --show-depends "$m" 2>/dev/null); then echo "$m"; continue; fi
        while read -r kind file _; do
            [[ $kind == insmod ]] || continue
            name=${file##*/}; name=${name%%.ko*}.ko
            grep -qx "$name" "$into/list" && continue
            case $file in
                *.ko) cp "$file" "$into/$name" ;;
                *.ko.xz) xz -dc "$file" >"$into/$name" ;;
                *.ko.zst) zstd -dcq "$file" >"$into/$name" ;;
                *.ko.gz) gzip -dc "$file" >"$into/$name" ;;
                *) die "unknown kind of module: $file" ;;
            esac
            echo "$name" >>"$into/list"
        done <<<"$line"
    done
}

# pack_initrd DIR OUT: an uncompressed newc cpio, the same bytes for the same
# tree. Not compressed: copying 5 MB costs a guest less than inflating 2 MB.
pack_initrd() {
    find "$1" -exec touch -h -d @0 {} +
    (cd "$1" && find . -mindepth 1 | LC_ALL=C sort | cpio -o -H newc -R 0:0 --reproducible --quiet) >"$2.new"
    mv "$2.new" "$2"
}
