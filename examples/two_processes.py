"""A search in two processes finds what one process finds: ``python examples/two_processes.py``.

On GPUs and on several machines it is the same command; see docs/clusters.md.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

import bionas_fast as bf

CONFIG = bf.SearchConfig(
    rules=("usf", "brsf"), operations=("dil_conv_3x3", "skip_connect"), channels=1, cells=2, epochs=1
)
COMMAND = "-m bionas_fast search --rules usf,brsf --ops dil_conv_3x3,skip_connect --channels 1 --cells 2 --epochs 1 -q"


def main() -> None:
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]  # torchrun
    with tempfile.TemporaryDirectory() as folder:
        one = bf.search(CONFIG, out=f"{folder}/one").genotype
        command = [*launcher, *COMMAND.split(), "--out", f"{folder}/two"]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        two = bf.Genotype.from_json(Path(folder, "two", "genotype.json").read_text(encoding="utf-8"))
    print(one)
    print(two)
    print("the same" if one == two else "rounding decided an edge")


if __name__ == "__main__":
    main()
