"""Whether the half steps of a search can be replayed as CUDA graphs."""

from __future__ import annotations

import torch

from bionas_fast import rules
from bionas_fast.nn import HebbianConv2d, HebbianLinear
from bionas_fast.runtime import distributed
from bionas_fast.searching.config import SearchConfig
from bionas_fast.supernet import Supernet

#: Modules of these packages compute the same in every step but for what is on the device.
_KNOWN = ("bionas_fast.", "torch.")


def obstacle(config: SearchConfig, net: Supernet, device: torch.device) -> str:
    """Return the reason why the half steps are launched one kernel at a time; empty if they are captured."""
    if device.type != "cuda":
        return "not on a CUDA device"
    if config.cuda_graphs == "off":
        return "cuda_graphs is off"
    if config.method != "darts":
        return f"method {config.method} computes on the host between its passes"
    if config.sampling == "gdas":
        return "sampling gdas draws on the host"
    if config.alpha_perturbation != "off":
        return "alpha_perturbation draws on the host"
    if config.projection_epochs:
        return "projection_epochs decides on the host"
    if config.amp == "fp16":
        return "amp fp16 reads its loss scale in every step"
    if distributed.world_size() > 1:
        return "the processes of the run exchange gradients"
    if any(isinstance(module, (HebbianConv2d, HebbianLinear)) for module in net.modules()):
        return "Hebbian layers read whether their updates are finite"
    other = {type(module) for module in net.modules() if not type(module).__module__.startswith(_KNOWN)}
    if other:
        return f"the supernet has modules of other packages: {min(kind.__name__ for kind in other)}"
    used = {candidate.rule for candidate in net.space.candidates if candidate.rule} | {*config.fixed.values()}
    own = sorted(rule for rule in used if not type(rules.get(rule)).__module__.startswith(_KNOWN))
    return f"rule {own[0]} is one of the user's" if own else ""
