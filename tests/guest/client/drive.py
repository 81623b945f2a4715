"""Boots and drives a guest with firecracker-python from PyPI, unchanged, and vmm in firecracker's place.

Usage: drive.py VMM KERNEL INITRD BOOT_ARGS DISK LARGER_DISK. Its class MicroVM wants a Docker daemon, nftables and the
Internet, so this uses what that class is made of: ProcessManager starts and finds the process, VMMManager reads and
changes the VM's state, Api is the REST client. The guest says READY, then TICK until its disk is larger, then BYE.
"""
import os
import sys
import tempfile
import time

import psutil
from firecracker.exceptions import APIError
from firecracker.process import ProcessManager
from firecracker.vmm import VMMManager

PATIENCE = 300
ID = "driven01"


def wait_for(what, condition):
    """Waits until the condition holds, and returns its value."""
    until = time.monotonic() + PATIENCE
    while time.monotonic() < until:
        value = condition()
        if value:
            return value
        time.sleep(0.05)
    raise AssertionError(f"no {what} in {PATIENCE} s")


def refused(words, request, **body):
    """The library must raise its own error, with the monitor's words in it."""
    try:
        request(**body)
    except APIError as error:
        assert "API fault:" in str(error) and words in str(error), error
    else:
        raise AssertionError(f"{body} was not refused: {words}")


class Guest:
    """A guest of the library's, all of whose files are in one folder."""

    def __init__(self, folder, vmm):
        self.folder = os.path.join(folder, ID)
        self.process, self.manager = ProcessManager(), VMMManager()
        os.makedirs(self.folder)
        # The library looks for a process of this name.
        binary = os.path.join(folder, "firecracker")
        os.symlink(vmm, binary)
        for part in self.process, self.manager:
            part._config.data_path, part._config.binary_path = folder, binary
        self.log = os.path.join(self.folder, "log")
        # As MicroVM._run_firecracker writes them.
        arguments = ["--api-sock", f"{self.folder}/firecracker.socket", "--id", ID, "--log-path", self.log]
        self.pid = self.process.start(ID, arguments)
        self.api = self.manager.get_api(ID)

    def console(self):
        """What the guest wrote so far."""
        with open(os.path.join(self.folder, "firecracker.log"), encoding="utf-8", errors="replace") as file:
            return file.read()

    def state(self):
        """As the library has it."""
        return self.manager.get_vmm_state(ID)

    def has_ended(self):
        """Whether the process is gone; its parent is this one, which may not have asked yet."""
        try:
            return psutil.Process(self.pid).status() == psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return True


def configure(guest, kernel, initrd, boot_args, disk):
    """Everything that MicroVM.create configures and this host has."""
    api = guest.api
    wait_for("API", lambda: os.path.exists(api.socket))
    assert guest.state() == "Not started"
    assert guest.process.get_pid(ID)[0] == guest.pid and guest.pid in guest.process.get_pids()
    assert guest.process.is_running(ID)
    assert api.version.get().json()["firecracker_version"].count(".") == 2
    api.logger.put(log_path=guest.log, level="Info", show_level=True)
    api.boot.put(kernel_image_path=kernel, boot_args=boot_args, initrd_path=initrd)
    api.drive.put(drive_id="rootfs", path_on_host=disk, is_root_device=False, is_read_only=False)
    api.machine_config.put(vcpu_count=2, mem_size_mib=128)
    api.vsock.put(guest_cid=3, uds_path=f"{guest.folder}/v.sock")
    refused("/no/disk does not exist", api.drive.put, drive_id="x", path_on_host="/no/disk", is_root_device=False)
    refused("the VM is not started", api.vm.patch, state="Paused")
    api.actions.put(action_type="InstanceStart")
    refused("started already", api.machine_config.put, vcpu_count=1, mem_size_mib=128)


def main():
    """Boots it, pauses and resumes it, changes its disk, and sees it end."""
    vmm, kernel, initrd, boot_args, disk, larger = sys.argv[1:]
    with tempfile.TemporaryDirectory() as folder:
        guest = Guest(folder, vmm)
        try:
            configure(guest, kernel, initrd, boot_args, disk)
            wait_for("READY", lambda: "READY" in guest.console())
            assert "cpus=2" in guest.console(), guest.console()
            config = guest.manager.get_vmm_config(ID)
            assert config["machine-config"]["vcpu_count"] == 2 and config["drives"][0]["path_on_host"] == disk
            for _ in range(3):
                assert guest.manager.update_vmm_state(ID, "Paused").endswith("successfully")
                assert guest.state() == "Paused"
                time.sleep(0.2)  # what the guest wrote before arrives
                before = guest.console()
                time.sleep(0.5)
                assert guest.console() == before, "it ticks in a pause"
                guest.manager.update_vmm_state(ID, "Resumed")
                assert guest.state() == "Running"
                wait_for("TICK", lambda: guest.console().count("TICK") > before.count("TICK") + 1)
            guest.api.drive.patch(drive_id="rootfs", path_on_host=larger)
            wait_for("BYE", lambda: "BYE" in guest.console())
            wait_for("end", guest.has_ended)
            guest.api.close()
        finally:
            if not guest.has_ended():
                psutil.Process(guest.pid).kill()
            print(guest.console())


if __name__ == "__main__":
    main()
