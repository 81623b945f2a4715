# shellcheck shell=bash
# The Debian 12 minbase root of tools/guest. Sourced after guest.sh.
# shellcheck disable=SC2154 # scratch and inputs are set in tools/guest

minbase_packages() {
    local wanted=(mmdebstrap gpg gpgv debian-archive-keyring)
    # Without root: mmdebstrap maps ids in a user namespace; fakeroot keeps the
    # owners while the image is made.
    ((EUID == 0)) || wanted+=(fakeroot uidmap)
    need_packages "${wanted[@]}"
}

# Runs inside mmdebstrap, with the root as $1 and the built mark as $2.
minbase_customize() {
    cat <<'I'
set -e
root=$1 mark=$2
sed -i 's/^root:[^:]*:/root::/' "$root/etc/shadow"
echo vmm >"$root/etc/hostname"
printf '127.0.0.1 localhost\n127.0.1.1 vmm\n' >"$root/etc/hosts"
# Writable when the command line says ro, as is usual
echo '/dev/root / ext4 rw,noatime 0 0' >"$root/etc/fstab"
: >"$root/etc/machine-id"
install -m 755 "$mark" "$root/usr/local/sbin/mark"
cat >"$root/etc/systemd/system/vmm-mark.service" <<'U'
[Unit]
Description=Mark on I/O port 0x80: boot finished
After=multi-user.target
[Service]
Type=oneshot
ExecStart=/usr/local/sbin/mark
[Install]
WantedBy=multi-user.target
U
mkdir -p "$root/etc/systemd/system/multi-user.target.wants"
ln -s ../vmm-mark.service "$root/etc/systemd/system/multi-user.target.wants/"
# Nothing that waits for a network or works behind a short-lived guest's back
for unit in apt-daily.timer apt-daily-upgrade.timer dpkg-db-backup.timer e2scrub_all.timer e2scrub_reap.service \
    fstrim.timer systemd-networkd-wait-online.service systemd-pstore.service getty@tty1.service; do
    ln -sf /dev/null "$root/etc/systemd/system/$unit"
done
I
}

# root_modules_tree KERNEL_DIR ROOT: the modules with what they need, where
# modprobe and udev look for them.
root_modules_tree() {
    local version from=$1/lib/modules to file
    version=$(ls "$from"); to=$2/usr/lib/modules/$version
    mkdir -p "$to"
    cp "$from/$version"/modules.{builtin,order} "$to/"
    [[ ! -e $from/$version/modules.builtin.modinfo ]] || cp "$from/$version/modules.builtin.modinfo" "$to/"
    for m in "${root_modules[@]}"; do
        /sbin/modprobe -d "$1" -S "$version" --show-depends "$m" 2>/dev/null || true
    done | awk '$1 == "insmod" { print $2 }' | sort -u | while read -r file; do
        file=${file#*"/$version/"}
        mkdir -p "$to/${file%/*}"; cp "$from/$version/$file" "$to/$file"
    done
    ln -sfn usr/lib "$2/lib"
    /sbin/depmod -b "$2" "$version"
    rm "$2/lib"
}

# Unpacks the root, adds modules, makes the image; as root or within fakeroot,
# so that owners come out right.
minbase_image() { # TAR TREE MODULES IMAGE
    mkdir -p "$2"
    tar -x -f "$1" -C "$2" --numeric-owner --exclude='./dev/*'
    chown -R 0:0 "$3"
    cp -a "$3/." "$2/"
    ext4_image "$2" "$4" 1G 766d6d00-0000-4000-8000-000000000002
}

make_minbase() {
    local tar=$scratch/root.tar modules=$scratch/modules release
    base_tree "$scratch/base"
    for release in bookworm trixie; do
        debian_kernel "$release"
        input "${KERNEL_PACKAGE% *}" "${KERNEL_PACKAGE#* }" "$KERNEL_DEB"
        root_modules_tree "$KERNEL_DIR" "$modules"
    done
    minbase_customize >"$scratch/customize"
    debian_sources bookworm >"$scratch/sources"
    say "fetching and unpacking Debian 12 minbase"
    chmod 755 "$scratch"
    SOURCE_DATE_EPOCH=1 mmdebstrap --quiet --variant=minbase \
        --include=systemd-sysv,udev,dbus,kmod,iproute2,procps \
        --dpkgopt='path-exclude=/usr/share/doc/*' --dpkgopt='path-exclude=/usr/share/man/*' \
        --dpkgopt='path-exclude=/usr/share/locale/*' \
        --customize-hook="sh $scratch/customize \"\$1\" $scratch/base/bin/mark" \
        bookworm "$tar" "$scratch/sources" >"$scratch/mmdebstrap" 2>&1 </dev/null ||
        { tail -n 20 "$scratch/mmdebstrap" >&2; die "mmdebstrap failed"; }
    tar -xOf "$tar" ./var/lib/dpkg/status | awk '/^Package:/ { p = $2 } /^Version:/ { print p, $2 }' >"$scratch/packages"
    input "minbase ($(wc -l <"$scratch/packages") packages)" 12 "$scratch/packages"
    if ((EUID == 0)); then minbase_image "$tar" "$scratch/tree" "$modules" "$1/debian12.ext4"
    else
        fakeroot bash -euc "$(declare -f minbase_image ext4_image)"'; minbase_image "$@"' - "$tar" "$scratch/tree" "$modules" "$1/debian12.ext4"
    fi
    cp "$scratch/packages" "$1/debian12.packages"
}
