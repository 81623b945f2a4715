"""The measuring half of tools/bench container: runs where /dev/kvm is (this host or the lab), as root, and writes samples
as JSON. See `report` for what is measured.
"""
import contextlib
import json
import os
import re
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time

import monitors

LIMIT = 300  # seconds that any one command may take
VMS = 20
QEMU_INIT = """#!/bin/busybox sh
b=/bin/busybox
$b mount -t proc proc /proc; $b mount -t sysfs sysfs /sys; $b mount -t devtmpfs dev /dev
$b mkdir -p /dev/pts /dev/shm /dev/mqueue /run /new; $b mount -t tmpfs tmpfs /new; $b mkdir /new/old
cd /new; for d in bin tools layer top root sys proc dev run bundle; do $b mkdir $d; done; $b cp /bin/busybox bin/; $b cp /config.json bundle/
# runc starts itself anew: its libraries are where its program looks for them.
$b mkdir lib lib64; $b ln -s /tools lib/x86_64-linux-gnu; $b ln -s /tools/ld-linux-x86-64.so.2 lib64/
$b mount -t erofs -o ro /dev/vda layer; $b mount -t erofs -o ro /dev/vdb tools
$b mount -t tmpfs tmpfs top; $b mkdir top/u top/w
$b mount -t overlay -o lowerdir=layer,upperdir=top/u,workdir=top/w overlay root
for d in proc sys dev; do $b mount --move /$d $d; done
exec $b switch_root /new /bin/busybox sh -c '
b=/bin/busybox; $b mount -t cgroup2 cgroup2 /sys/fs/cgroup
TAIL $b poweroff -f'
"""
# One container; or, told by the guest's clock in seconds, ten more beside one that runs, and ten processes in that.
ONE = "/tools/runc --root /run/runc run --bundle /bundle c </dev/null; echo RUNC ended with $?;"
MORE = """
r="/tools/runc --root /run/runc"; now() { read up idle </proc/uptime; echo $1 $up; }
$b mkdir /long; $b sed "s/\\"true\\"/\\"sleep\\", \\"1000\\"/" /bundle/config.json >/long/config.json
$r run -d --bundle /long long </dev/null >/dev/null 2>&1; $r exec long true; $r run --bundle /bundle first </dev/null
now BEGAN; for n in 1 2 3 4 5 6 7 8 9 10; do $r run --bundle /bundle c$n </dev/null; done; now RAN
for n in 1 2 3 4 5 6 7 8 9 10; do $r exec long true; done; now EXECED;
"""


def say(text):
    print(f"bench: {text}", file=sys.stderr, flush=True)


def timed(command, env=None, **more):
    """Milliseconds of a command, which must go well; its output goes to standard error when it does not."""
    began = time.monotonic_ns()
    done = subprocess.run(command, env=env, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=LIMIT, **more)
    took = (time.monotonic_ns() - began) / 1e6
    if done.returncode:
        sys.exit(f"bench: {' '.join(map(str, command))} ended with {done.returncode}:\n{done.stdout}{done.stderr}")
    return took, done.stdout


class Bench:
    def __init__(self, spec, work):
        self.spec, self.work, self.guest = spec, work, spec["guest"]
        self.kernel = shutil.copy(os.path.join(self.guest, "tuned/vmlinux"), work)
        self.initrd = shutil.copy(os.path.join(self.guest, "bench/initrd"), os.path.join(work, "bare.initrd"))
        for name in ("vmm", "vmm-agent", "vmm-runtime"):
            shutil.copy(os.path.join(os.path.dirname(spec["vmm"]), name), work)
        self.vmm = os.path.join(work, "vmm")
        self.env = dict(os.environ, VMM_STORE=os.path.join(work, "store"), VMM_KERNEL=self.kernel)
        timed([self.vmm, "image", "import", "-q", f"oci:{self.guest}/images/busybox", "bench:1"], self.env)

    def bare(self):
        """The same kernel and memory, to an init that prints and powers off."""
        vm = {"kernel": self.kernel, "initrd": self.initrd, "cmdline": monitors.CMDLINE, "memory": 512, "cpus": 1}
        return timed(monitors.command("vmm", self.vmm, vm))[0]

    def run(self, *words):
        return timed([self.vmm, "run", "--rm", "--network", "none", *words, "bench:1", "true"], self.env)[0]

    def boots(self):
        """The same without a template."""
        return self.run("--templates", "never")

    def make_template(self, *words):
        """The second VM of a kind makes it: milliseconds of that one."""
        self.run(*words)
        return self.run(*words)

    @contextlib.contextmanager
    def tenant(self):
        """A tenant's VM with a container that waits."""
        words = ["--vm", "bench", "--network", "none"]
        timed([self.vmm, "run", "-d", "--rm", "--name", "long", *words, "bench:1", "sleep", "1000"], self.env)
        try:
            yield
        finally:
            timed([self.vmm, "rm", "-f", "long"], self.env)

    def second(self):
        """One more container in it."""
        return timed([self.vmm, "run", "--rm", "--vm", "bench", "--network", "none", "bench:1", "true"], self.env)[0]

    def exec(self):
        """One more process in its container."""
        return timed([self.vmm, "exec", "long", "true"], self.env)[0]

    def runc(self):
        """Milliseconds of the same by runc in a guest with the same kernel: a container, a process."""
        said = timed(self.runc_command)[1]
        at = {word: float(time) for word, time in re.findall(r"^(BEGAN|RAN|EXECED) ([0-9.]+)", said, re.M)}
        if len(at) < 3:
            sys.exit(f"bench: runc did not run:\n{said}")
        return (at["RAN"] - at["BEGAN"]) * 100, (at["EXECED"] - at["RAN"]) * 100

    def qemu(self):
        """The same image and command by QEMU microvm, busybox and runc."""
        took, said = timed(self.qemu_command)
        if "RUNC ended with 0" not in said:
            sys.exit(f"bench: QEMU's container did not run:\n{said}")
        return took

    def prepare_qemu(self, name, tail):
        """The command of a guest that does so."""
        tree = os.path.join(self.work, name)
        for folder in ("bin", "dev", "proc", "sys"):
            os.makedirs(os.path.join(tree, folder))
        shutil.copy("/bin/busybox", os.path.join(tree, "bin"))
        with open(os.path.join(tree, "init"), "w") as file:
            file.write(QEMU_INIT.replace("TAIL", tail))
        os.chmod(os.path.join(tree, "init"), 0o755)
        with open(self.spec["runc_config"]) as file:
            config = json.load(file)
        config["root"], config["process"]["terminal"], config["process"]["args"] = {"path": "/root"}, False, ["true"]
        with open(os.path.join(tree, "config.json"), "w") as file:
            json.dump(config, file)
        initrd = os.path.join(self.work, f"{name}.initrd")
        timed(["sh", "-c", f"find . | cpio -o -H newc -R 0:0 >{initrd}"], cwd=tree)
        layers = os.path.join(self.work, "store/layers")
        layer, = (os.path.join(layers, name) for name in os.listdir(layers))
        layer = shutil.copy(layer, os.path.join(self.work, f"{name}.erofs"))  # vmm's VMs hold locks on theirs
        tools = shutil.copy(self.spec["runc_disk"], self.work)
        # `-L` of monitors.py looks beside the program for firmware; here it is the machine's own.
        vm = {"kernel": self.kernel, "initrd": initrd, "cmdline": monitors.CMDLINE, "memory": 512, "cpus": 1}
        command = monitors.command("qemu", self.spec["qemu"], vm)
        at = command.index("-L")
        del command[at : at + 2]
        for name, path in (("layer", layer), ("tools", tools)):
            command += ["-drive", f"id={name},file={path},format=raw,if=none,readonly=on"]
            command += ["-device", f"virtio-blk-device,drive={name}"]
        return command

    @contextlib.contextmanager
    def registry(self):
        """Debian's docker-registry on loopback, with the large image."""
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        config = os.path.join(self.work, "registry.yml")
        with open(config, "w") as file:
            file.write("version: 0.1\nlog: {level: error, accesslog: {disabled: true}}\n")
            file.write(f"storage: {{filesystem: {{rootdirectory: {self.work}/registry}}}}\nhttp: {{addr: '127.0.0.1:{port}'}}\n")
        log = open(os.path.join(self.work, "registry.log"), "w")
        server = subprocess.Popen(["docker-registry", "serve", config], stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        try:
            for _ in range(600):
                with socket.socket() as there:
                    if there.connect_ex(("127.0.0.1", port)) == 0:
                        break
                time.sleep(0.05)
            name = f"127.0.0.1:{port}/large:1"
            copy = ["skopeo", "--insecure-policy", "copy", "-q", "--dest-tls-verify=false"]
            timed(copy + [f"oci:{self.spec['large']}:1", f"docker://{name}"])
            yield name
        finally:
            server.kill()
            server.wait()

    def pull(self, name):
        with tempfile.TemporaryDirectory(dir=self.work) as store:
            return timed([self.vmm, "image", "pull", "-q", name], dict(self.env, VMM_STORE=store))[0]

    def skopeo(self, name):
        with tempfile.TemporaryDirectory(dir=self.work) as place:
            copy = ["skopeo", "--insecure-policy", "copy", "-q", "--src-tls-verify=false", f"docker://{name}"]
            took = timed(copy + [f"oci:{place}/layout:1"])[0]
            return took + timed(["umoci", "unpack", "--image", f"{place}/layout:1", f"{place}/bundle"])[0]

    def many(self, templates):
        """KiB of each VM of VMS that wait at the same time (its `vmm run` and its monitor), one by one as they come; and
        what the store has grown by."""
        if templates == "auto":
            self.make_template("--memory", "64m")
        before = size_of(self.env["VMM_STORE"])
        running, totals = [], [0]
        try:
            for number in range(VMS):
                command = [self.vmm, "run", "--rm", "-i", "--network", "none", "--memory", "64m", "--templates", templates, "bench:1", "sh", "-c", "echo UP; exec cat"]
                pipe = subprocess.PIPE
                vm = subprocess.Popen(command, env=self.env, stdin=pipe, stdout=pipe, start_new_session=True)
                running.append(vm)
                if vm.stdout.readline() != b"UP\n":
                    sys.exit(f"bench: VM {number + 1} did not come up")
                totals.append(sum(pss_kib(pid) for one in running for pid in family(one.pid)))
            return {"totals_kib": totals[1:], "store_grew": size_of(self.env["VMM_STORE"]) - before}
        finally:
            for vm in running:
                vm.stdin.close()
                with contextlib.suppress(subprocess.TimeoutExpired):
                    vm.wait(LIMIT)
                if vm.poll() is None:
                    os.kill(vm.pid, signal.SIGKILL)
                    vm.wait()


def size_of(folder):
    """Bytes on disk, without what commands keep for themselves."""
    files = (os.path.join(place, name) for place, _, names in os.walk(folder) for name in names)
    return sum(os.lstat(file).st_blocks * 512 for file in files)


def family(pid):
    """A process and its descendants."""
    found = [pid]
    for one in found:
        with contextlib.suppress(OSError), open(f"/proc/{one}/task/{one}/children") as file:
            found += map(int, file.read().split())
    return found


def pss_kib(pid):
    with contextlib.suppress(OSError), open(f"/proc/{pid}/smaps_rollup") as file:
        return next((int(line.split()[1]) for line in file if line.startswith("Pss:")), 0)
    return 0


def main():
    spec = json.loads(sys.argv[1])
    work = tempfile.mkdtemp(prefix="bench.", dir="/tmp")
    bench = Bench(spec, work)
    samples = {name: [] for name in ("bare", "run", "boots", "qemu", "pull", "skopeo", "second", "exec", "runc run", "runc exec")}
    bench.qemu_command, bench.runc_command = bench.prepare_qemu("one", ONE), bench.prepare_qemu("more", MORE)
    making = bench.make_template()
    say(f"a start that makes a template: {making:.1f} ms")
    for number in range(-1, spec["rounds"]):
        # A bare boot goes before each: what ran before counts on an emulated CPU.
        for name in ("bare", "run", "bare", "boots", "bare", "qemu"):
            took = getattr(bench, name)()
            say(f"round {number + 1} {name}: {took:.1f} ms")
            if number >= 0:
                samples[name].append(took)
    with bench.tenant():
        for number in range(-1, spec["rounds"]):
            ran, execed = bench.runc()
            for name, took in (("second", bench.second()), ("exec", bench.exec()), ("runc run", ran), ("runc exec", execed)):
                say(f"round {number + 1} {name}: {took:.1f} ms")
                if number >= 0:
                    samples[name].append(took)
    with bench.registry() as image:
        for number in range(-1, spec["pull_rounds"]):
            for name in ("pull", "skopeo"):
                took = getattr(bench, name)(image)
                say(f"round {number + 1} {name}: {took:.1f} ms")
                if number >= 0:
                    samples[name].append(took)
    many = {templates: bench.many(templates) for templates in ("never", "auto")}
    say(f"{VMS} VMs: {many}")
    result = {"samples": samples, "making": making, "many": many, "host": " ".join(os.uname()[2:4])}
    with open(spec["out"], "w") as file:
        json.dump(result, file)
    shutil.rmtree(work)


def table(result, large_mb):
    """What tools/bench prints."""
    samples = {name: statistics.median(times) for name, times in result["samples"].items()}

    def line(title, names, goal):
        (name, base), times = names, result["samples"][names[0]]
        spread = max(times) - min(times)
        print(f"{title:<52}{samples[name]:>12,.1f} ({spread:,.1f}){samples[name] / samples[base]:>8.2f}  {goal}")

    print(f"\ncontainer: 1 vCPU, clock: {result['clock']}; median ms (max - min), ratio")
    line("bare boot of the kernel to its init, and off", ("bare", "bare"), "")
    line("vmm run --rm IMAGE true", ("run", "bare"), "of the bare boot; aim: at most 1.3")
    line("the same with --templates never", ("boots", "bare"), "of the bare boot")
    print(f"{'the start that makes the template, once':<52}{result['making']:>12,.1f}")
    line("QEMU microvm, busybox, runc, the same image", ("qemu", "bare"), "of the bare boot")
    print(f"{'vmm run by QEMU':<52}{samples['run'] / samples['qemu']:>25.2f}  aim: at most 0.5")
    line("one more container in a tenant's VM that runs", ("second", "runc run"), "of runc's; aim: at most 2")
    line("the same by runc, in a guest with the same kernel", ("runc run", "runc run"), "")
    line("vmm exec CONTAINER true", ("exec", "runc exec"), "")
    line("runc exec in a guest with the same kernel", ("runc exec", "runc exec"), "")
    print(f"{'vmm exec less runc exec, ms':<52}{samples['exec'] - samples['runc exec']:>25.1f}  aim: at most 20")
    line(f"vmm image pull, {large_mb} MB from loopback", ("pull", "skopeo"), "")
    line("skopeo copy to a layout, umoci unpack", ("skopeo", "skopeo"), "")
    print(f"{'speed of vmm image pull by theirs':<52}{samples['skopeo'] / samples['pull']:>25.2f}  aim: at least 0.8")
    for templates, many in result["many"].items():
        totals = many["totals_kib"]
        more = (totals[-1] - totals[0]) / (len(totals) - 1)
        print(f"{len(totals)} VMs from one image, --templates {templates}: PSS of the first {totals[0] / 1024:.1f} MiB, of each further")
        print(f"one {more / 1024:.1f} MiB; the store has grown by {many['store_grew']} bytes", flush=True)


if __name__ == "__main__":
    main()
