"""The tables that tools/bench prints: medians, spreads, ratios to QEMU microvm."""
import statistics

import api

BOOT = [("init_ms", "exec to init, ms"), ("exit_ms", "exec to exit, ms"), ("uptime_ms", "uptime at init, ms")]


def rate(job):
    return job["bytes"] / 1e6 / (job["ns"] / 1e9)


def per_second(job):
    return job["ops"] / (job["ns"] / 1e9)


def micros(job):
    return job["ns"] / 1e3 / job["ops"]


def cpu_micros(job):
    return job["cpu_ns"] / 1e3 / job["ops"]


def cpu_seconds(job):
    """Per gigabyte."""
    return job["cpu_ns"] / job["bytes"]


def exits(job):
    return job["exits"] / job["ops"]


def exits_per_mb(job):
    return job["exits"] / (job["bytes"] / 1e6)


RATE, IOPS, TRIP = (rate, "MB/s"), (per_second, "per s"), (micros, "µs")
PER_GB, PER_OP = (cpu_seconds, "CPU s/GB"), (cpu_micros, "CPU µs/op")
EXITS_MB, EXITS_OP = (exits_per_mb, "exits/MB"), (exits, "exits/op")


def units(job):
    """What is shown of a job: its speed, and its price."""
    if job == "round-trip":
        return TRIP, PER_OP, EXITS_OP
    return (IOPS, PER_OP, EXITS_OP) if "-4k-" in job else (RATE, PER_GB, EXITS_MB)


def cell(values, base, digits=None):
    """Median, spread, and the median's ratio to that of `base`."""
    middle, base = statistics.median(values), statistics.median(base) if base else 0
    digits = digits or (1 if middle >= 10 else 3)
    text = f"{middle:,.{digits}f} ({max(values) - min(values):,.{digits}f})"
    return text + (f" [{middle / base:.2f}]" if base else "")


def table(what, result):
    vm = result["vm"]
    peer = "firecracker" if what == "api" else "qemu"
    print(f"\n{what}: {vm['cpus']} vCPU, {vm['memory']} MiB, clock: {result['clock']}; median (max - min) [ratio to {peer}]")
    if what == "boot":
        boot(result)
    elif what == "api":
        api.table(result, cell)
    else:
        jobs(result["samples"])
    for name, count in result["stalls"].items():
        print(f"{name} stood still and was measured once more: {count}")
    print(flush=True)


def boot(result):
    samples, memory = result["samples"], result.get("memory", {})
    print(f"{'monitor':<17}" + "".join(f"{title:>32}" for _, title in BOOT) + f"{'beside the guest, MiB':>24}")
    for name, runs in samples.items():
        line = f"{name:<17}"
        for key, _ in BOOT:
            base = [run[key] for run in samples.get("qemu", [])] if key != "uptime_ms" else []
            line += f"{cell([run[key] for run in runs], base):>32}"
        if name in memory:
            line += f"{memory[name]['beside_kib'] / 1024:>24.2f}"
        print(line)


def jobs(samples):
    """One row per job and figure, one column per monitor."""
    print(f"{'job':<14}{'':<11}" + "".join(f"{name:>28}" for name in samples))
    for job in next(iter(samples.values()))[0]:
        for figure, unit in units(job):
            base = [figure(run[job]) for run in samples.get("qemu", [])]
            row = "".join(f"{cell([figure(run[job]) for run in runs], base):>28}" for runs in samples.values())
            print(f"{job:<14}{unit:<11}{row}")
