"""How each monitor is asked for the same VM: kernel, initrd, one serial console, and what the measurement needs."""
import json
import os
import tempfile


# `quiet`: what is measured is the monitor, not the speed of a serial port.
CMDLINE = "console=ttyS0 quiet panic=-1 reboot=k"


MAC = "02:00:00:00:00:07"
CID = 3

# Contenders that are another's program with other options, and the measurements that they are for.
VARIANTS = {
    "qemu-vhost": ("qemu", ["net"]),
    "vmm-async": ("vmm", ["block"]),
    "vmm-vhost": ("vmm", ["net"]),
    "vmm-watched": ("vmm", ["block"]),
}


# The lab's KVM has no XSAVE, which Firecracker wants to be told.
WITHOUT_XSAVE = {"kvm_capabilities": ["!56"]} if "LAB" in os.environ else {}

# Those who speak the same API.
WITH_API = ["vmm", "firecracker"]


def contenders(what, names):
    """Those of `names` that `what` measures."""
    if what == "api":
        return [name for name in names if name in WITH_API]
    return [name for name in names if name not in VARIANTS or what in VARIANTS[name][1]]


def command(name, path, vm):
    """The argument list; `vm` has kernel, initrd, cmdline, memory (MiB), cpus and perhaps disk (a file that may be
    written), tap (an interface) or vsock (a path, for those that have sockets there)."""
    return MONITORS[name](path, vm)


def vmm(path, vm, disk="", net=""):
    args = [path, "--kernel", vm["kernel"], "--initrd", vm["initrd"], "--cmdline", vm["cmdline"]]
    args += ["--memory", f"{vm['memory']}M", "--cpus", str(vm["cpus"])]
    args += ["--disk", vm["disk"] + disk] if "disk" in vm else []
    args += ["--net", f"tap={vm['tap']},mac={MAC}{net}"] if "tap" in vm else []
    return args + (["--vsock", vm["vsock"]] if "vsock" in vm else [])


def vmm_async(path, vm):
    return vmm(path, vm, disk=",engine=async")


def vmm_vhost(path, vm):
    return vmm(path, vm, net=",vhost")


def vmm_watched(path, vm):
    """With an API, metrics and a log that tells all."""
    place = os.path.dirname(vm["kernel"])
    args = ["--api-sock", os.path.join(place, "watched.sock"), "--metrics-path", os.path.join(place, "metrics")]
    return vmm(path, vm) + args + ["--log-path", os.path.join(place, "log"), "--log-level", "trace"]


def qemu(path, vm, vhost="off"):
    args = [path, "-L", os.path.dirname(path), "-M", "microvm", "-accel", "kvm", "-cpu", "host", "-m", str(vm["memory"]), "-smp", str(vm["cpus"])]
    args += ["-nodefaults", "-no-user-config", "-nographic", "-no-reboot", "-serial", "stdio"]
    args += ["-kernel", vm["kernel"], "-initrd", vm["initrd"], "-append", vm["cmdline"]]
    if "disk" in vm:
        args += ["-drive", f"id=d,file={vm['disk']},format=raw,if=none"]
        args += ["-device", "virtio-blk-device,drive=d"]
    if "tap" in vm:
        args += ["-netdev", f"tap,id=n,ifname={vm['tap']},script=no,downscript=no,vhost={vhost}"]
        args += ["-device", f"virtio-net-device,netdev=n,mac={MAC}"]
    if "vsock" in vm:
        args += ["-global", "virtio-mmio.force-legacy=false", "-device", f"vhost-vsock-device,guest-cid={CID}"]
    return args


def qemu_vhost(path, vm):
    return qemu(path, vm, vhost="on")


def alioth(path, vm):
    args = [path, "boot", "--pvh", vm["kernel"], "--initramfs", vm["initrd"], "--cmdline", vm["cmdline"]]
    args += ["--memory", f"size={vm['memory']}M", "--cpu", f"count={vm['cpus']}"]
    args += ["--blk", f"file,path={vm['disk']}"] if "disk" in vm else []
    args += ["--net", f"tap,mac={MAC},mtu=1500,if={vm['tap']}"] if "tap" in vm else []
    return args + (["--vsock", f"vhost,cid={CID}"] if "vsock" in vm else [])


def firecracker(path, vm):
    config = {
        "boot-source": {
            "kernel_image_path": vm["kernel"],
            "initrd_path": vm["initrd"],
            "boot_args": vm["cmdline"] + " vmm.end=reboot pci=off",
        },
        "machine-config": {"vcpu_count": vm["cpus"], "mem_size_mib": vm["memory"]},
        "drives": [],
    }
    if "disk" in vm:
        disk = {"drive_id": "d", "is_root_device": False, "is_read_only": False, "path_on_host": vm["disk"]}
        config["drives"].append(disk)
    if "tap" in vm:
        config["network-interfaces"] = [{"iface_id": "eth0", "host_dev_name": vm["tap"], "guest_mac": MAC}]
    if "vsock" in vm:
        config["vsock"] = {"guest_cid": CID, "uds_path": vm["vsock"]}
    if WITHOUT_XSAVE:
        config["cpu-config"] = written(WITHOUT_XSAVE)
    return [path, "--no-api", "--config-file", written(config)]


def written(document):
    """The name of a new file with this document."""
    with tempfile.NamedTemporaryFile("w", suffix=".json", delete=False) as file:
        json.dump(document, file)
    return file.name


def cloud_hypervisor(path, vm):
    args = [path, "--kernel", vm["kernel"], "--initramfs", vm["initrd"], "--cmdline", vm["cmdline"]]
    args += ["--memory", f"size={vm['memory']}M", "--cpus", f"boot={vm['cpus']}"]
    args += ["--serial", "tty", "--console", "off"]
    args += ["--disk", f"path={vm['disk']}"] if "disk" in vm else []
    args += ["--net", f"tap={vm['tap']},mac={MAC}"] if "tap" in vm else []
    return args + (["--vsock", f"cid={CID},socket={vm['vsock']}"] if "vsock" in vm else [])


MONITORS = {
    "vmm": vmm,
    "vmm-async": vmm_async,
    "vmm-vhost": vmm_vhost,
    "vmm-watched": vmm_watched,
    "qemu": qemu,
    "qemu-vhost": qemu_vhost,
    "alioth": alioth,
    "firecracker": firecracker,
    "cloud-hypervisor": cloud_hypervisor,
}
