"""The table that tools/bench prints: medians, spreads, ratios to QEMU microvm."""
import statistics

COLUMNS = {
    "boot": [("init_ms", "exec to init, ms"), ("exit_ms", "exec to exit, ms"), ("uptime_ms", "uptime at init, ms")],
    "block": [("seq_mb_s", "1 MiB seq read, MB/s"), ("rand_iops", "4 KiB rand read, IOPS")],
}


def median(samples, key):
    return statistics.median(sample[key] for sample in samples)


def spread(samples, key):
    values = [sample[key] for sample in samples]
    return max(values) - min(values)


def table(what, result):
    samples, memory = result["samples"], result.get("memory", {})
    vm = result["vm"]
    print(f"\n{what}: {vm['cpus']} vCPU, {vm['memory']} MiB, clock: {result['clock']}; median (max - min) [ratio to qemu]")
    header = [f"{'monitor':<17}"] + [f"{title:>32}" for _, title in COLUMNS[what]]
    print("".join(header) + (f"{'beside the guest, MiB':>24}" if memory else ""))
    for name, runs in samples.items():
        line = f"{name:<17}"
        for key, _ in COLUMNS[what]:
            cell = f"{median(runs, key):.1f} ({spread(runs, key):.1f})"
            if "qemu" in samples and key != "uptime_ms":
                cell += f" [{median(runs, key) / median(samples['qemu'], key):.2f}]"
            line += f"{cell:>32}"
        if name in memory:
            line += f"{memory[name]['beside_kib'] / 1024:>24.2f}"
        print(line)
    print(flush=True)
