# shellcheck shell=bash
# The parts of tools/lab: what it needs, and one run of it. Sourced after
# common.sh and kernel.sh; reads the options that tools/lab has set.
# shellcheck disable=SC2154,SC2054

# Debian 13 and later have virtiofsd (Rust) as a package of its own; before
# that, qemu-system-common brings one (C), with other options.
lab_packages() {
    need_packages qemu-system-x86 qemu-system-common seabios busybox-static cpio kmod xz-utils zstd lz4 util-linux
    virtiofsd=/usr/lib/qemu/virtiofsd
    [[ -x $virtiofsd ]] || virtiofsd=/usr/libexec/virtiofsd
    [[ -x $virtiofsd ]] || need_packages virtiofsd
}

# The kernel and initrd of the lab, in the cache; keyed by all that goes in.
lab_prepare() {
    debian_kernel "$release"
    lab_debug_module
    lab_initrd="$KERNEL_DIR/lab-$(cat "$TOOLS/lib/lab.sh" "$TOOLS/lib/kernel.sh" /bin/busybox | sha256sum | cut -c 1-16).cpio"
    [[ -e $lab_initrd ]] && return
    local tree; tree=$(mktemp -d)
    mkdir -p "$tree"/{bin,dev,proc,sys,new,low,up}
    cp /bin/busybox "$tree/bin/"
    put_modules "$KERNEL_DIR" "$tree" virtio_pci fuse virtiofs overlay virtio_console virtio-rng
    cat >"$tree/init" <<'I'
#!/bin/busybox sh
b=/bin/busybox
$b mount -t proc proc /proc; $b mount -t sysfs sysfs /sys; $b mount -t devtmpfs dev /dev
for m in $($b cat /modules/list); do $b insmod /modules/$m; done
for w in $($b cat /proc/cmdline); do case $w in lab.job=*) job=${w#*=};; lab.plain) plain=1;; esac; done
# Without root outside, virtiofsd may not open the files of others with O_NOATIME,
# which an overlay asks for if the one who mounted it has CAP_FOWNER; and set-uid
# programs of root's would turn into nobody's.
[ -z "$plain" ] || { d=/low/usr/lib/x86_64-linux-gnu; as="$d/ld-linux-x86-64.so.2 --library-path $d /low/usr/bin/setpriv --bounding-set=-fowner --inh-caps=-fowner"; nosuid=nosuid,; }
$b mount -t virtiofs -o ro root /low && $b mount -t tmpfs -o size=80% up /up && $b mkdir /up/u /up/w &&
    $as $b mount -t overlay -o ${nosuid}lowerdir=/low,upperdir=/up/u,workdir=/up/w,redirect_dir=off,index=off,metacopy=off root /new &&
    $b mkdir -p /new/proc /new/sys /new/dev /new/lab/out /new/lab/root && $b cp /low$job/start /low$job/command /new/lab/ || $b poweroff -f
for d in proc sys dev; do $b mount --move /$d /new/$d; done
exec $b switch_root /new /bin/bash /lab/start
I
    chmod +x "$tree/init"
    pack_initrd "$tree" "$lab_initrd"
    rm -rf "$tree"
}

# svm_debug.ko for the lab's kernel, in the cache; sets lab_module. Without the kernel's headers (a cache that is older
# than what the mirrors have) the lab goes without it, and the tests that load it say so.
lab_debug_module() {
    local tree name version headers=linux-headers-${KERNEL_RELEASE} part
    lab_module="$KERNEL_DIR/svm_debug-$(sha256sum "$TOOLS/lib/lab/svm_debug.c" | cut -c 1-16).ko"
    # Only one kernel has it: debuggers are not tested twice.
    [[ $release == bookworm && ! -e $lab_module ]] || return 0
    need_packages gcc-12 make
    read -r _ version <<<"$KERNEL_PACKAGE"
    tree=$(mktemp -d)
    for name in "$headers" "${headers%-cloud-amd64}-common" linux-kbuild-6.1; do
        part=$(fetch_deb bookworm "$name" "$version") && dpkg-deb -x "$part" "$tree" && continue
        say "the lab has no svm_debug.ko, for want of $name $version"
        rm -rf "$tree"
        return
    done
    # The headers name each other as they would be installed.
    sed -i "s#include /usr#include $tree/usr#" "$tree/usr/src/$headers/Makefile"
    mkdir "$tree/module"
    cp "$TOOLS/lib/lab/svm_debug.c" "$tree/module/"
    echo 'obj-m := svm_debug.o' >"$tree/module/Kbuild"
    make -s -C "$tree/usr/src/$headers" M="$tree/module" modules >"$tree/log" 2>&1 || { cat "$tree/log" >&2; die "svm_debug.c does not compile"; }
    strip --strip-debug -o "$lab_module.new" "$tree/module/svm_debug.ko"
    mv "$lab_module.new" "$lab_module"
    rm -rf "$tree"
}

# What runs first inside, as process 1. Arguments: the folder of this run.
lab_start_script() {
    local v keep
    printf 'export LAB=1 PATH=%q HOME=%q TERM=%q LANG=%q USER=root LOGNAME=root SHELL=/bin/bash\n' \
        "$PATH" "$HOME" "${TERM:-dumb}" "${LANG:-C.UTF-8}"
    for v in "${!pass[@]}"; do printf 'export %s=%q\n' "$v" "${pass[$v]}"; done
    # /tmp and the like start empty, but for the checkout and the current folder.
    printf 'keep=('; for keep in "$REPO" "$PWD"; do printf '%q ' "$keep"; done
    printf ')\nmodule=%q modules=%q shell=%q out=%q cwd=%q size=%q\n' "$lab_module" "$KERNEL_DIR/lib/modules" "$shell" "$out" "$PWD" \
        "$(if [[ -n $shell ]]; then stty size; fi)"
    cat <<'I'
umask 022
for c in mount ip hostname; do eval "$c() { /bin/busybox $c \"\$@\"; }"; done
mount --bind / /lab/root
for d in /dev/shm /tmp /run; do mkdir -p "$d"; mount -t tmpfs -o mode=1777 tmpfs "$d"; done
chmod 755 /run; mkdir -p /run/lock /var/tmp
for d in "${keep[@]}"; do case $d in /tmp/* | /run/*) mkdir -p "$d"; mount --bind "/lab/root$d" "$d" ;; esac; done
mkdir -p /dev/pts /lib/modules
mount -t devpts -o mode=620,ptmxmode=666 devpts /dev/pts; mount -t cgroup2 cgroup2 /sys/fs/cgroup
ln -sfn /proc/self/fd /dev/fd; ln -sf fd/0 /dev/stdin; ln -sf fd/1 /dev/stdout; ln -sf fd/2 /dev/stderr
mount --bind "/lab/root$modules" /lib/modules
modprobe -a kvm-amd tun vhost_net vhost_vsock loop virtio_net 2>/dev/null
[[ ! -e /lab/root$module ]] || ln -s "/lab/root$module" /lab/svm_debug.ko
[[ -z $out ]] || mount -t virtiofs out /lab/out
chmod 666 /dev/kvm /dev/vhost-net /dev/vhost-vsock; mkdir -p /dev/net; chmod 666 /dev/net/tun
ip link set lo up
[[ -c /dev/kvm ]] || { echo "no /dev/kvm in the lab:"; dmesg | grep -iE 'kvm|svm' | tail -n 5; echo o >/proc/sysrq-trigger; sleep 60; }
hostname lab; dmesg -n 1
for p in /sys/class/virtio-ports/*; do
    case $(<"$p/name") in lab.output) output=/dev/${p##*/} ;; lab.status) status=/dev/${p##*/} ;; esac
done
exec 9>"$status"; echo ready >&9
cd "$cwd"
if [[ -n $shell ]]; then
    stty -F /dev/hvc0 sane rows ${size/ / cols }
    setsid -c -w bash /lab/command </dev/hvc0 >/dev/hvc0 2>&1 9>&-; rc=$?
else
    # A pipe, as the port itself can be opened only once. What the command
    # leaves running may hold the pipe open: it gets a second to end.
    mkfifo /run/lab.output
    cat /run/lab.output >"$output" & cat=$!
    setsid -w bash /lab/command </dev/null >/run/lab.output 2>&1 9>&-; rc=$?
    (sleep 1; kill $cat) 2>/dev/null & wait $cat 2>/dev/null
fi
sync; echo "end $rc" >&9
echo o >/proc/sysrq-trigger; sleep 60
I
}

# lab_share TAG DIR CACHE: serves DIR to the lab, and dies with it. With CACHE
# `always` the lab asks once for what it knows: DIR should not change meanwhile.
lab_share() {
    local options=() as=(setpriv --pdeathsig KILL)
    if "$virtiofsd" --help 2>&1 | grep -q -- --sandbox; then
        options=(--shared-dir="$2" --cache="$3" --sandbox=chroot --xattr --no-announce-submounts --log-level=warn)
    else
        options=(-o source="$2" -o cache="$3" -o sandbox=chroot -o xattr -o log_level=warn)
    fi
    # Without root: root of a user namespace may chroot as well, and the C
    # virtiofsd's file of its process id goes to a /run of its own.
    ((EUID == 0)) || as=(unshare --user --map-root-user --mount "${as[@]}"
        sh -c 'mount -t tmpfs tmpfs /run; exec "$@"' sh)
    "${as[@]}" "$virtiofsd" --socket-path="$run/$1.sock" "${options[@]}" </dev/null >"$run/$1.log" 2>&1 {alive}>&- &
    pids+=($!)
    devices+=(-chardev "socket,id=$1,path=$run/$1.sock" -device "vhost-user-fs-pci,chardev=$1,tag=$1")
}

lab_stop() {
    trap '' INT TERM HUP
    [[ -z ${tty:-} ]] || stty "$tty" </dev/tty 2>/dev/null || true
    ((${#pids[@]} == 0)) || kill -KILL "${pids[@]}" 2>/dev/null || true
    exec {alive}>&- # the reaper tidies only then, and whoever waits for us may not wait for it
    wait "${pids[@]}" 2>/dev/null || true
    wait "$reaper" 2>/dev/null || true
}

lab_failed() {
    say "$1; the end of its console:"
    tail -n 40 "$run/console" 2>/dev/null | tr -d '\r' | sed 's/^/    /' >&2 || true
    cat "$run"/*.log 2>/dev/null | tail -n 10 | sed 's/^/    /' >&2 || true
    exit 125
}

lab_run() {
    local began=$EPOCHREALTIME pids=() devices=() accel status=0 tty='' i deadline timer tick own=(setsid) plain=''
    run=$(mktemp -d /tmp/lab.XXXXXX)
    # However this script ends, the reaper sees its pipe close, and tidies.
    exec {alive}> >(trap '' INT TERM HUP QUIT; cat >/dev/null; rm -rf "$run" /run/virtiofsd/"${run//\//.}".* 2>/dev/null)
    reaper=$!
    trap lab_stop EXIT
    trap 'exit 130' INT; trap 'exit 143' TERM; trap 'exit 129' HUP

    ((EUID == 0)) || plain=' lab.plain'
    if [[ -n $out ]]; then mkdir -p "$out"; out=$(readlink -f "$out"); fi
    if (($#)); then printf 'exec '; printf '%q ' "$@"; else echo 'exec bash -i'; fi >"$run/command"
    lab_start_script >"$run/start"
    : >"$run/status"
    lab_share root / always
    [[ -z $out ]] || lab_share out "$out" auto
    for ((i = 0; i < 100; i++)); do
        [[ -S $run/root.sock && (-z $out || -S $run/out.sock) ]] && break
        kill -0 "${pids[@]}" 2>/dev/null || lab_failed "virtiofsd ended at once"
        sleep 0.05
    done

    # Without erms the kernels, the lab's and its guests', clear and copy pages
    # by words; QEMU runs `rep movsb` byte by byte, and all is half as fast. (With
    # fsrm but no erms, memmove of Linux 6.1 never ends.)
    # Without xsave, as QEMU lets a guest's xsetbv through to the lab itself: the
    # guest's XCR0 is never the one that KVM believes in.
    # A tick that never stops: QEMU may lose the interrupt of a timer that is set once (docs/lab.md).
    accel=(-accel tcg,thread=multi -smp "${cpus:-1}")
    tick='nohz=off highres=off '
    [[ -z $icount ]] || { accel=(-accel tcg,thread=single -smp 1 -icount shift=0,sleep=off); tick=''; }
    if [[ -n $shell ]]; then
        tty=$(stty -g) own=(env)
        devices+=(-chardev stdio,id=term,signal=off -device virtconsole,chardev=term)
        exec {from}<&0 {to}>&1
    else
        # Through a pipe and cat, so that QEMU's non-blocking mode is not set on our output.
        exec {from}</dev/null {to}> >(exec setpriv --pdeathsig KILL cat {alive}>&-)
        cat=$!
        devices+=(-add-fd "fd=$to,set=1" -chardev file,id=output,path=/dev/fdset/1,append=on
            -device virtserialport,chardev=output,name=lab.output)
    fi
    # init_on_alloc: QEMU does not see what virtiofsd writes to memory, and would
    # go on with its translation of older code there. A cleared page has none.
    # In a session of its own, so that Ctrl-C reaches this script alone.
    "${own[@]}" setpriv --pdeathsig KILL qemu-system-x86_64 "${accel[@]}" -cpu max,la57=off,-erms,-fsrm,-xsave,-avx,-avx2,-f16c,-fma,-vaes,-mpx,-pku -m "$memory" -M q35 \
        -nodefaults -no-user-config -display none -no-reboot -name lab \
        -object memory-backend-memfd,id=mem,size="${memory}M",share=on -numa node,memdev=mem \
        -device virtio-serial-pci -device virtio-rng-pci \
        -chardev "file,id=status,path=$run/status" -device virtserialport,chardev=status,name=lab.status \
        -kernel "$KERNEL_DIR/vmlinux" -initrd "$lab_initrd" -serial "file:$run/console" "${devices[@]}" \
        -append "console=ttyS0 panic=-1 quiet mitigations=off nokaslr tsc=reliable ${tick}init_on_alloc=1 random.trust_cpu=on lab.job=$run$plain" \
        <&"$from" 2>"$run/qemu.log" >&"$to" {alive}>&- &
    qemu=$!; pids+=("$qemu")
    exec {from}<&- {to}>&-

    # Two limits: that of the boot, and the user's.
    deadline=${limit:-0}
    while :; do
        ((deadline == 0 || deadline > 120)) && i=120 || i=$deadline
        setpriv --pdeathsig KILL sleep "$i" {alive}>&- & timer=$!; pids+=("$timer")
        { wait -n "$qemu" "$timer" || true; } 2>/dev/null
        kill -0 "$qemu" 2>/dev/null || break
        grep -q ready "$run/status" || ((deadline)) || lab_failed "no sign of life for $i seconds"
        ((deadline == 0)) || { deadline=$((deadline - i)); ((deadline > 0)) || { say "stopped at the time limit of $limit s"; exit 124; }; }
    done
    [[ -n $shell ]] || wait "$cat" || true
    status=$(awk '/^end / { print $2 }' "$run/status")
    [[ -z $verbose ]] || awk -v a="$began" -v b="$EPOCHREALTIME" 'BEGIN { printf "lab: %.1f s in all\n", b - a }' >&2
    [[ -n $status ]] || lab_failed "the lab ended before the command did"
    exit "$status"
}
