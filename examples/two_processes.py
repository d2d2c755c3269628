"""A search in two processes finds what one process finds: ``python examples/two_processes.py``.

On GPUs and on several machines it is the same command; see docs/clusters.md.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

import bionas_fast as bf

SEARCH = (
    "-m bionas_fast search --rules usf,brsf --ops dil_conv_3x3,skip_connect --channels 1 --epochs 1 --batch-size 64"
)
ONE = [sys.executable, *SEARCH.split()]
TWO = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", *SEARCH.split()]


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        for name, command in (("one", ONE), ("two", TWO)):
            subprocess.run([*command, "-q", "--out", f"{folder}/{name}"], check=True, stdout=subprocess.DEVNULL)
        one, two = (bf.Genotype.from_json(Path(folder, name, "genotype.json").read_text()) for name in ("one", "two"))
    print(one)
    print(two)
    print("the same" if one == two else "rounding decided an edge")


if __name__ == "__main__":
    main()
