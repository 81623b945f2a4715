"""The measurement of tools/bench api: how soon a monitor's API answers, what each request takes, and how long a client
needs to a guest's init. api.c has the clock.

Firecracker's API is the one that is spoken, so its program is the peer.
"""
import json
import os
import statistics
import subprocess

import jobs
import monitors

SOCKET = "api.sock"
MARKER = "INIT uptime_us="


def boot_requests(name, vm):
    """What a client asks for before the start of a VM of kernel and initrd."""
    end = " vmm.end=reboot pci=off" if name == "firecracker" else ""
    source = {"kernel_image_path": vm["kernel"], "initrd_path": vm["initrd"], "boot_args": vm["cmdline"] + end}
    # The lab's CPU has no XSAVE (docs/lab.md), so no KVM_CAP_XCRS, which Firecracker insists on unless told not to.
    lacks = monitors.WITHOUT_XSAVE
    return [
        ("machine-config", {"vcpu_count": vm["cpus"], "mem_size_mib": vm["memory"]}),
        ("cpu-config", lacks),
        ("boot-source", source),
    ]


def all_requests(name, vm, work):
    """A request of each resource that both have, in an order that both take."""
    drive = {"drive_id": "data", "path_on_host": vm["initrd"], "is_root_device": False, "is_read_only": True}
    net = {"iface_id": "eth0", "host_dev_name": jobs.TAP, "guest_mac": monitors.MAC}
    files = {key: os.path.join(work, key) for key in ("logger", "metrics", "vsock")}
    for path in files.values():
        jobs.fresh(path)
    for key in ("logger", "metrics"):
        open(files[key], "w").close()  # Firecracker wants them to be there
    return [
        ("logger", {"log_path": files["logger"], "level": "Info"}),
        ("metrics", {"metrics_path": files["metrics"]}),
        *boot_requests(name, vm),
        ("drives/data", drive),
        ("network-interfaces/eth0", net),
        ("mmds/config", {"network_interfaces": ["eth0"], "version": "V2"}),
        ("mmds", {"latest": {"meta-data": {"instance-id": "i-1"}}}),
        ("vsock", {"guest_cid": monitors.CID, "uds_path": files["vsock"]}),
        ("balloon", {"amount_mib": 0, "deflate_on_oom": True}),
        ("entropy", {}),
    ]


def run(program, path, requests, marker, work):
    """One life of a monitor; returns nanoseconds by what they were measured for."""
    socket = jobs.fresh(os.path.join(work, SOCKET))
    text = b""
    for resource, body in requests:
        body = json.dumps(body).encode()
        head = f"PUT /{resource} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        request = head.encode() + body
        text += f"{resource} {len(request)}\n".encode() + request
    with open(os.path.join(work, "requests"), "wb") as file:
        file.write(text)
    command = [program, socket, file.name, marker, path, "--api-sock", socket]
    lines = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
    return {name: int(took) for name, took in map(str.split, lines.splitlines())}


def measure(name, path, vm, program, work):
    """A start with a guest, and one with every resource and no guest."""
    start = [("actions", {"action_type": "InstanceStart"})]
    booted = run(program, path, boot_requests(name, vm) + start, MARKER, work)
    asked = run(program, path, all_requests(name, vm, work), "", work)
    return {"answer": booted.pop("answer"), "init": booted.pop("marker"), "start": booted["actions"], "put": {
        resource: took for resource, took in asked.items() if resource != "answer"}}


def memory(path, vm, resident, work):
    """KiB beside the guest of a VM that is up: without an API, and with one that has been asked, metrics and a log."""
    plain = resident("vmm", path, vm)["beside_kib"]
    socket = jobs.fresh(os.path.join(work, SOCKET))
    files = [os.path.join(work, key) for key in ("logger", "metrics")]
    more = ["--api-sock", socket, "--log-path", files[0], "--log-level", "debug", "--metrics-path", files[1]]

    def use():
        for _ in range(3):
            for verb in ("config", "metrics", "flush-metrics"):
                subprocess.run([path, "ctl", socket, verb], check=True, stdout=subprocess.DEVNULL)

    return {"plain_kib": plain, "watched_kib": resident("vmm", path, vm, more, use)["beside_kib"]}


def table(result, cell):
    """One row per figure, in milliseconds, and one column per monitor; `cell` says what is in it."""
    samples = result["samples"]
    rows = [
        ("exec to an answer", lambda one: one["answer"]),
        ("first PUT to init", lambda one: one["init"]),
        ("PUT InstanceStart", lambda one: one["start"]),
    ]
    first = next(iter(samples.values()))[0]
    rows += [(f"PUT /{name}", lambda one, name=name: one["put"][name]) for name in first["put"]]
    rows.append(("PUT of any (medians')", lambda one: statistics.median(one["put"].values())))
    print(f"{'ms':<28}" + "".join(f"{name:>28}" for name in samples))
    for title, figure in rows:
        millis = {name: [figure(one) / 1e6 for one in ones] for name, ones in samples.items()}
        of_base = millis.get("firecracker")
        print(f"{title:<28}" + "".join(f"{cell(ones, of_base, 3):>28}" for ones in millis.values()))
    for name, kib in result.get("memory", {}).items():
        print(f"{name}: beside the guest {kib['plain_kib']} KiB; with API, metrics and log "
              f"{kib['watched_kib'] - kib['plain_kib']} KiB more")
