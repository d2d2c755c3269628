"""References that round the factors of products, as kernels do that multiply bfloat16; see ``kernels.maps``."""

from __future__ import annotations

import torch
from torch.utils._python_dispatch import TorchDispatchMode


class RoundedFactors(TorchDispatchMode):
    """Rounds the factors of 1×1 convolutions and of their gradients to bfloat16."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        convolution, backward = torch.ops.aten.convolution.default, torch.ops.aten.convolution_backward.default
        factors = {convolution: 2, backward: 3}.get(func, 0)
        if factors and args[factors - 1].shape[2:] == (1, 1):
            args = (*(own.bfloat16().to(own.dtype) for own in args[:factors]), *args[factors:])
        return func(*args, **(kwargs or {}))
