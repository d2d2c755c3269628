"""Description of the machine of a run: versions, processor, accelerator."""

from __future__ import annotations

import functools
import os
import platform
import subprocess
import sys
from datetime import datetime
from importlib import metadata
from pathlib import Path

#: Entries of the description that may affect the last bits of a result.
DECISIVE = ("bionas-fast", "torch", "system", "cpu", "threads", "accelerator")


def machine() -> dict[str, str]:
    """Describe this machine, the date and the command of this process, for the configuration of a run."""
    import torch

    packages = {name: _version(name) for name in ("bionas-fast", "torch", "torchvision", "triton", "numpy")}
    accelerator = torch.cuda.get_device_name() if torch.cuda.is_available() else "none"
    return {
        "python": platform.python_version(),
        **packages,
        "host": platform.node() or "unknown",
        "system": f"{platform.system()} {platform.machine()}",
        "processor": _processor(),
        "cpu": torch.backends.cpu.get_cpu_capability(),
        "threads": str(torch.get_num_threads()),
        "accelerator": accelerator,
        "date": datetime.now().astimezone().isoformat(sep=" ", timespec="seconds"),
        "command": " ".join([_program(), *sys.argv[1:]]),
        "git commit": _commit(os.getcwd()),
    }


@functools.cache
def _commit(folder: str) -> str:
    """Return the commit that a folder is at; ``none`` outside of git."""
    command = ["git", "-C", folder, "rev-parse", "HEAD"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=5, check=False)
    except (OSError, subprocess.SubprocessError):
        return "none"
    return done.stdout.strip() or "none"


def _processor() -> str:
    """Return the model of the processor and the number of its logical cores."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:  # not on Linux
        lines = []
    models = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    model = next(models, "") or platform.processor() or platform.machine()
    return f"{model}, {os.cpu_count()} logical cores"


def _program() -> str:
    name = Path(sys.argv[0]).name
    return "python -m bionas_fast" if name == "__main__.py" else name


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"
