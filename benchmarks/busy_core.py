"""A step of the supernet while another program uses one core: ``python benchmarks/busy_core.py`` prints a table.

For every way in which threads can wait for others, a process of its own takes the median time of a step (forward and
backward, two threads, C = 16, five cells, 32 images of 14×14) alone, and with a busy loop on the last core. The
settings take turns; nothing else should run.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time

SETTINGS = {
    "active (default of libgomp)": {},
    "GOMP_SPINCOUNT=1000 (the command)": {"GOMP_SPINCOUNT": "1000"},
    "OMP_WAIT_POLICY=passive": {"OMP_WAIT_POLICY": "passive"},
}
STEPS = 7


def measure() -> None:
    """Print the seconds of a step alone and beside a busy loop, as JSON."""
    import torch
    from torch.nn import functional as F

    import bionas_fast as bf

    torch.set_num_threads(2)
    net = bf.build_supernet(channels=16, cells=5, in_channels=1)
    x, y = torch.randn(32, 1, 14, 14), torch.arange(32) % 10

    def median() -> float:
        times = []
        for _ in range(STEPS + 1):
            start = time.perf_counter()
            loss = F.cross_entropy(net(x), y)
            loss.backward()
            times.append(time.perf_counter() - start)
            net.zero_grad()
            assert loss.isfinite()
        return statistics.median(times[1:])

    alone = median()
    busy = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        os.sched_setaffinity(busy.pid, {max(os.sched_getaffinity(0))})
        print(json.dumps([alone, median()]))
    finally:
        busy.kill()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--measure", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.measure:
        return measure()
    plain = {name: value for name, value in os.environ.items() if name not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")}
    found: dict[str, list[list[float]]] = {name: [] for name in SETTINGS}
    for _ in range(given.rounds):
        for name, settings in SETTINGS.items():
            command = [sys.executable, __file__, "--measure"]
            done = subprocess.run(command, env=plain | settings, check=True, stdout=subprocess.PIPE, text=True)
            found[name].append(json.loads(done.stdout))
    print("| threads wait | alone | beside a busy loop | ratio |\n|---|---|---|---|")
    for name, rows in found.items():
        alone, busy = (statistics.median(column) for column in zip(*rows, strict=True))
        print(f"| {name} | {alone:.2f} s | {busy:.2f} s | {busy / alone:.1f} |")


if __name__ == "__main__":
    main()
