"""The measuring half of tools/bench: runs where /dev/kvm is (this host or the lab) and writes samples as JSON.

Everything that is measured is copied to /tmp first (memory, in the lab) and each monitor runs once unmeasured.
"""
import base64
import json
import os
import pty
import re
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time

import api
import jobs
import monitors

ROUNDS = {"api": 5, "boot": 5, "block": 3, "net": 3, "vsock": 3}
LIMIT = 120  # seconds that one run may take
LIMIT_OF_INSTRUCTIONS = 15  # the same where a second is 1e9 instructions


class Stalled(Exception):
    """A VM stood still."""


class Failed(Exception):
    """A VM ended before it should."""


class Run:
    """A monitor under the clock. Its input is a terminal, as some want one; its output is a pipe."""

    def __init__(self, name, path, vm, more=()):
        args = [*monitors.command(name, path, vm), *more]
        master, slave = pty.openpty()
        read, write = os.pipe()
        actions = [(os.POSIX_SPAWN_DUP2, slave, 0), (os.POSIX_SPAWN_DUP2, write, 1), (os.POSIX_SPAWN_DUP2, write, 2)]
        self.others = jobs.vms()
        self.started = time.monotonic_ns()
        self.pid = os.posix_spawn(path, args, environment(path), file_actions=actions, setsid=True)
        os.close(slave)
        os.close(write)
        self.name, self.master, self.read, self.text = name, master, read, b""

    def wait_for(self, pattern):
        """Reads until the pattern is there; returns the match and the nanoseconds since exec."""
        while True:
            match = re.search(pattern, self.text)
            if match:
                return match, time.monotonic_ns() - self.started
            left = LIMIT - (time.monotonic_ns() - self.started) / 1e9
            data = b""
            stalled = left <= 0 or not select.select([self.read], [], [], left)[0]
            if not stalled:
                data = os.read(self.read, 65536)
            if not data:
                os.kill(self.pid, signal.SIGKILL)
                os.waitpid(self.pid, 0)
                text = f"{self.name} did not print {pattern}; it printed:\n{self.text.decode(errors='replace')}"
                raise Stalled(text) if stalled else Failed(text)
            self.text += data

    def finish(self):
        """Waits for the end; returns nanoseconds since exec and CPU seconds."""
        while select.select([self.read], [], [], LIMIT)[0]:
            data = os.read(self.read, 65536)
            if not data:
                break
            self.text += data
        else:
            os.kill(self.pid, signal.SIGKILL)
        _, _, usage = os.wait4(self.pid, 0)
        took = time.monotonic_ns() - self.started
        os.close(self.read)
        os.close(self.master)
        return took, usage.ru_utime + usage.ru_stime


def beside_guest(pid, memory_mib):
    """Resident KiB of everything but the guest's RAM, and of the guest's RAM."""
    areas = []
    with open(f"/proc/{pid}/smaps") as file:
        for line in file:
            head = re.match(r"([0-9a-f]+)-([0-9a-f]+) ", line)
            if head:
                areas.append([int(head[1], 16), int(head[2], 16), 0])
            elif line.startswith("Rss:"):
                areas[-1][2] = int(line.split()[1])
    size, total = memory_mib << 20, sum(area[2] for area in areas)
    candidates = []
    for first in range(len(areas)):
        # Guest RAM is one area, or a row of adjacent ones (parts of it may be mapped from the kernel's file).
        last = first
        while areas[last][1] - areas[first][0] < size and last + 1 < len(areas) and areas[last + 1][0] == areas[last][1]:
            last += 1
        length = areas[last][1] - areas[first][0]
        if length == size or (first == last and size < length < size + (64 << 20)):
            candidates.append(sum(area[2] for area in areas[first : last + 1]))
    # An allocator may have reserved as much; the guest's is the one that is in use.
    if candidates:
        return total - max(candidates), max(candidates)
    sys.exit(f"bench: no {memory_mib} MiB of guest RAM among the mappings of process {pid}")


def resident(name, path, vm, more=(), use=lambda: None):
    """Memory of a VM that is up and does nothing, after `use` has been called."""
    script = base64.b64encode(b"echo MEMORY; sleep 2").decode()
    vm = dict(vm, initrd=vm["idle_initrd"], cmdline=f"{vm['cmdline']} vmm.run={script}")
    run = Run(name, path, vm, more)
    run.wait_for(rb"MEMORY")
    use()
    time.sleep(0.5)
    beside, guest = beside_guest(run.pid, vm["memory"])
    run.finish()
    return {"beside_kib": beside, "guest_kib": guest}


def boot(name, path, vm):
    run = Run(name, path, vm)
    match, init = run.wait_for(rb"INIT uptime_us=(\d+)\s")
    took, cpu = run.finish()
    return {"init_ms": init / 1e6, "exit_ms": took / 1e6, "uptime_ms": int(match[1]) / 1e3, "cpu_s": cpu}


def stage(name, path, work):
    """Copies a monitor, its shared libraries and its firmware to memory; returns where it is then."""
    place = os.path.join(work, name)
    os.mkdir(place)
    staged = shutil.copy(path, os.path.join(place, os.path.basename(path)))
    libraries = subprocess.run(["ldd", path], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True).stdout
    for library in re.findall(r"=> (/\S+)", libraries):
        shutil.copy(library, place)
    if name.startswith("qemu"):
        for rom in ["pvh.bin", "linuxboot_dma.bin", "bios-microvm.bin"]:
            homes = [f"/usr/share/{home}/{rom}" for home in ("qemu", "seabios", "qemu/firmware")]
            found = next(filter(os.path.exists, homes), None)
            if found:
                shutil.copy(found, place)
    return staged


def environment(path):
    return dict(os.environ, LD_LIBRARY_PATH=os.path.dirname(path))


def initrd_of(binary):
    """Packs a static guest program as the init of an initrd (newc cpio)."""
    with open(binary, "rb") as file:
        program = file.read()
    archive = b""
    entries = [("dev", 0o040755, 0, 0, b""), ("dev/console", 0o020600, 5, 1, b"")]
    entries += [("init", 0o100755, 0, 0, program), ("TRAILER!!!", 0, 0, 0, b"")]
    for number, (path, mode, major, minor, data) in enumerate(entries, 1):
        name = path.encode() + b"\0"
        fields = [number, mode, 0, 0, 1, 0, len(data), 0, 0, major, minor, len(name), 0]
        archive += b"070701" + b"".join(b"%08X" % field for field in fields) + name
        archive += b"\0" * (-len(archive) % 4) + data
        archive += b"\0" * (-len(archive) % 4)
    return archive


def say(text):
    print(f"bench: {text}", file=sys.stderr, flush=True)


def measure(what, name, path, vm, around, programs, work):
    """One sample."""
    if what == "boot":
        return boot(name, path, vm)
    if what == "api":
        return api.measure(name, path, vm, programs["api"], work)
    return jobs.measure(Run(name, path, dict(vm, **around(name))), what)


def main():
    global LIMIT
    spec = json.loads(sys.argv[1])
    LIMIT = LIMIT_OF_INSTRUCTIONS if spec["instructions"] else LIMIT
    work = tempfile.mkdtemp(prefix="bench.", dir="/tmp")
    guest = spec["guest"]
    vm = {"cpus": 1, "memory": 128, "cmdline": monitors.CMDLINE}
    for key, source in [("kernel", "tuned/vmlinux"), ("initrd", "bench/initrd"), ("idle_initrd", "tuned/initrd")]:
        vm[key] = shutil.copy(os.path.join(guest, source), os.path.join(work, key))
    what = spec["what"]
    if what in jobs.LAST:
        with open(os.path.join(work, "initrd"), "wb") as file:
            file.write(initrd_of(spec["programs"][what]))
    paths = {}
    for name, path in spec["monitors"].items():
        paths[name] = stage(name, path, work)
    samples = {name: [] for name in paths}
    stalls = {}
    with jobs.surroundings(what, work, spec["programs"]) as around:
        for number in range(-1, spec["rounds"]):
            for name, path in list(paths.items()):
                try:
                    sample = measure(what, name, path, vm, around, spec["programs"], work)
                except Stalled as stalled:
                    # Once may be the lab's fault (docs/lab.md); it is said, and the next time ends the measurement.
                    say(f"{stalled}\nbench: {name} stood still; once more")
                    stalls[name] = stalls.get(name, 0) + 1
                    sample = measure(what, name, path, vm, around, spec["programs"], work)
                except Failed as failed:
                    if number >= 0 or name == "vmm":
                        raise
                    say(f"{failed}\nbench: {name} does not run here, so it is not measured")
                    del paths[name], samples[name]
                    continue
                if number >= 0:
                    samples[name].append(sample)
                say(f"round {number + 1} {name}: {sample}")
    result = {"samples": samples, "stalls": stalls, "vm": {key: vm[key] for key in ["cpus", "memory", "cmdline"]}}
    if what == "boot":
        result["memory"] = {name: resident(name, path, vm) for name, path in paths.items()}
    if what == "api" and "vmm" in paths:
        result["memory"] = {"vmm": api.memory(paths["vmm"], vm, resident, work)}
    result["host"] = " ".join(os.uname()[2:4])
    with open(spec["out"], "w") as file:
        json.dump(result, file)
    shutil.rmtree(work)


if __name__ == "__main__":
    main()
