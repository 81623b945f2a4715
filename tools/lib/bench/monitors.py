"""How each monitor is asked for the same VM: kernel, initrd, one serial console, perhaps one disk."""
import os


# `quiet`: what is measured is the monitor, not the speed of a serial port.
CMDLINE = "console=ttyS0 quiet panic=-1 reboot=k"


def command(name, path, vm):
    """The argument list; `vm` has kernel, initrd, cmdline, memory (MiB), cpus and perhaps disk."""
    return MONITORS[name](path, vm)


def vmm(path, vm):
    args = [path, "--kernel", vm["kernel"], "--initrd", vm["initrd"], "--cmdline", vm["cmdline"]]
    args += ["--memory", f"{vm['memory']}M", "--cpus", str(vm["cpus"])]
    return args + (["--disk", vm["disk"] + ",ro"] if "disk" in vm else [])


def qemu(path, vm):
    args = [path, "-L", os.path.dirname(path), "-M", "microvm", "-accel", "kvm", "-cpu", "host", "-m", str(vm["memory"]), "-smp", str(vm["cpus"])]
    args += ["-nodefaults", "-no-user-config", "-nographic", "-no-reboot", "-serial", "stdio"]
    args += ["-kernel", vm["kernel"], "-initrd", vm["initrd"], "-append", vm["cmdline"]]
    if "disk" in vm:
        args += ["-drive", f"id=d,file={vm['disk']},format=raw,if=none,readonly=on"]
        args += ["-device", "virtio-blk-device,drive=d"]
    return args


def alioth(path, vm):
    args = [path, "boot", "--pvh", vm["kernel"], "--initramfs", vm["initrd"], "--cmdline", vm["cmdline"]]
    args += ["--memory", f"size={vm['memory']}M", "--cpu", f"count={vm['cpus']}"]
    return args + (["--blk", f"file,path={vm['disk']},readonly=true"] if "disk" in vm else [])


def firecracker(path, vm):
    import json
    import tempfile

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
        disk = {"drive_id": "d", "is_root_device": False, "is_read_only": True, "path_on_host": vm["disk"]}
        config["drives"].append(disk)
    with tempfile.NamedTemporaryFile("w", suffix=".json", delete=False) as file:
        json.dump(config, file)
    return [path, "--no-api", "--config-file", file.name]


def cloud_hypervisor(path, vm):
    args = [path, "--kernel", vm["kernel"], "--initramfs", vm["initrd"], "--cmdline", vm["cmdline"]]
    args += ["--memory", f"size={vm['memory']}M", "--cpus", f"boot={vm['cpus']}"]
    args += ["--serial", "tty", "--console", "off"]
    return args + (["--disk", f"path={vm['disk']},readonly=on"] if "disk" in vm else [])


MONITORS = {
    "vmm": vmm,
    "qemu": qemu,
    "alioth": alioth,
    "firecracker": firecracker,
    "cloud-hypervisor": cloud_hypervisor,
}
