"""Mixing of the images of a batch, and of their labels: mixup and CutMix, by torchvision."""

from __future__ import annotations

import torch
from torch import Tensor


class Mixing:
    """Mixup (Zhang et al. 2018) and CutMix (Yun et al. 2019) of batches; with both, one of them at random per batch.

    The draws come from PyTorch's generator.

    Args:
        mixup: α of mixup's Beta(α, α); 0 for no mixup.
        cutmix: α of CutMix's Beta(α, α); 0 for no CutMix.
        num_classes: number of classes.
    """

    def __init__(self, mixup: float, cutmix: float, num_classes: int) -> None:
        self._transforms = []
        if mixup or cutmix:
            from torchvision.transforms import v2  # slow to import

            kinds = ((v2.MixUp, mixup), (v2.CutMix, cutmix))
            self._transforms = [kind(alpha=alpha, num_classes=num_classes) for kind, alpha in kinds if alpha]

    def __call__(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Mix a batch: images [N, C, H, W] and labels int64 [N] become images and probabilities float [N, classes].

        Without mixup and CutMix, both are returned unchanged.
        """
        if not self._transforms:
            return images, labels
        chosen = int(torch.randint(len(self._transforms), ())) if len(self._transforms) > 1 else 0
        return self._transforms[chosen](images, labels)
