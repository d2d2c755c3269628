"""Description of the machine of a run: versions, processor, accelerator."""

from __future__ import annotations

import platform
import sys
from importlib import metadata
from pathlib import Path

import torch

#: Entries of the description that may affect the last bits of a result.
DECISIVE = ("bionas-fast", "torch", "system", "cpu", "threads", "accelerator")


def machine() -> dict[str, str]:
    """Describe this machine and the command of this process, for the configuration of a run."""
    packages = {name: _version(name) for name in ("bionas-fast", "torch", "torchvision", "triton", "numpy")}
    accelerator = torch.cuda.get_device_name() if torch.cuda.is_available() else "none"
    return {
        "python": platform.python_version(),
        **packages,
        "system": f"{platform.system()} {platform.machine()}",
        "cpu": torch.backends.cpu.get_cpu_capability(),
        "threads": str(torch.get_num_threads()),
        "accelerator": accelerator,
        "command": " ".join(Path(word).name if i == 0 else word for i, word in enumerate(sys.argv)),
    }


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"
