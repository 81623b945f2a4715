"""The jobs of tools/bench block, net and vsock: what a VM needs around it, how long a job took by the guest's clock, and
how much CPU time the monitor took for it.

A guest announces each job (see guest.h) and sleeps before and after it, so that the clocks are read meanwhile.
"""
import contextlib
import fcntl
import glob
import os
import pathlib
import re
import socket
import struct
import subprocess
import sys
import time

TAP = "vmmbench"
TUNSETIFF, TUNSETPERSIST = 0x400454CA, 0x400454CB
SIOCGIFFLAGS, SIOCSIFFLAGS, SIOCSIFADDR, SIOCSIFNETMASK = 0x8913, 0x8914, 0x8916, 0x891C
IFF_UP, IFF_TAP, IFF_NO_PI, IFF_VNET_HDR = 1, 2, 0x1000, 0x4000

# The jobs that each measurement ends with.
LAST = {"block": "write-4k-32", "net": "round-trip", "vsock": "round-trip"}


def measure(run, what):
    """Follows a VM through its jobs; returns for each its operations, bytes, nanoseconds, CPU nanoseconds and exits."""
    results, name = {}, ""
    while name != LAST[what]:
        match, _ = run.wait_for(rb"START (\S+)\n|START (\S+)\r")
        name = (match[1] or match[2]).decode()
        threads = vhost_threads(run.pid)
        before, left = cpu_ns([run.pid] + threads), exits(run)
        match, _ = run.wait_for(rb"DONE " + re.escape(name.encode()) + rb" ops=(\d+) bytes=(\d+) ns=(\d+)\s")
        cpu = cpu_ns([run.pid] + threads) - before
        results[name] = {"ops": int(match[1]), "bytes": int(match[2]), "ns": int(match[3]), "cpu_ns": cpu}
        results[name]["exits"] = exits(run) - left
        run.text = run.text[match.end() :]
    run.finish()
    return results


def cpu_ns(pids):
    """CPU time of all threads of these processes, of those that ended too (CPUCLOCK_SCHED of the process)."""
    return sum(time.clock_gettime_ns((~pid << 3) | 2) for pid in pids)


def vms():
    """The VMs that KVM knows, where debugfs is in reach. Their names begin with a thread's id, not the process'."""
    return set(glob.glob("/sys/kernel/debug/kvm/*/exits"))


def exits(run):
    """VM exits of the run's VM so far, those too that the host's kernel serves; 0 where debugfs is out of reach."""
    return sum(int(pathlib.Path(file).read_text()) for file in vms() - run.others)


def vhost_threads(pid):
    """Kernel threads that work for the process; since Linux 6.4 they are threads of the process itself."""
    found = []
    for entry in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError), open(f"/proc/{entry}/comm") as file:
            if file.read().strip() == f"vhost-{pid}":
                found.append(int(entry))
    return found


@contextlib.contextmanager
def surroundings(what, work, programs):
    """Gives a function that says what a contender's VM has beside its kernel."""
    with contextlib.ExitStack() as stack:
        if what in LAST and "LAB" in os.environ and not os.path.ismount("/sys/kernel/debug"):
            subprocess.run(["/bin/busybox", "mount", "-t", "debugfs", "debugfs", "/sys/kernel/debug"], check=True)
        if what == "block":
            disk = os.path.join(work, "disk")
            with open(disk, "wb") as file:
                for _ in range(256):
                    file.write(os.urandom(1 << 20))
            yield lambda name: {"disk": disk}
        elif what == "net":
            stack.enter_context(interface(TAP, "10.7.0.1"))
            stack.enter_context(peer(programs, "tcp", "10.7.0.1", "7000"))
            yield lambda name: {"tap": TAP}
        elif what == "vsock":
            socket_path = os.path.join(work, "vsock")
            # For those whose guests' connections end at a UNIX socket, and for those that use the host's vsock.
            stack.enter_context(peer(programs, "unix", socket_path + "_7000"))
            if os.path.exists("/dev/vhost-vsock"):
                stack.enter_context(peer(programs, "vsock", "7000"))
            yield lambda name: {"vsock": fresh(socket_path)}
        elif what == "api":
            stack.enter_context(interface(TAP, "10.7.0.1"))
            yield lambda name: {}
        else:
            yield lambda name: {}


def fresh(path):
    """The path, without what an earlier VM left there."""
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)
    return path


@contextlib.contextmanager
def peer(programs, *words):
    """The host's end of the traffic."""
    process = subprocess.Popen([programs["peer"], *words], stdout=subprocess.PIPE)
    if process.stdout.readline() != b"listening\n":
        sys.exit(f"bench: the host's end of the traffic, peer {' '.join(words)}, ended at once")
    try:
        yield
    finally:
        process.kill()
        process.wait()


@contextlib.contextmanager
def interface(name, address):
    """A TAP device that stays while nobody uses it, up and with an address of a /24."""
    tun = os.open("/dev/net/tun", os.O_RDWR)
    fcntl.ioctl(tun, TUNSETIFF, struct.pack("16sH22x", name.encode(), IFF_TAP | IFF_NO_PI | IFF_VNET_HDR))
    fcntl.ioctl(tun, TUNSETPERSIST, 1)
    os.close(tun)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        for request, value in ((SIOCSIFADDR, address), (SIOCSIFNETMASK, "255.255.255.0")):
            fcntl.ioctl(control, request, struct.pack("16sHH4s16x", name.encode(), socket.AF_INET, 0, socket.inet_aton(value)))
        flags = struct.unpack("16sH22x", fcntl.ioctl(control, SIOCGIFFLAGS, struct.pack("16s24x", name.encode())))[1]
        fcntl.ioctl(control, SIOCSIFFLAGS, struct.pack("16sH22x", name.encode(), flags | IFF_UP))
    try:
        yield
    finally:
        tun = os.open("/dev/net/tun", os.O_RDWR)
        fcntl.ioctl(tun, TUNSETIFF, struct.pack("16sH22x", name.encode(), IFF_TAP | IFF_NO_PI | IFF_VNET_HDR))
        fcntl.ioctl(tun, TUNSETPERSIST, 0)
        os.close(tun)
