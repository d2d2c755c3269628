"""The words that settings and arguments choose from, as types; this module imports nothing that takes long."""

from __future__ import annotations

from typing import Literal

#: Precisions of products of float32 numbers: exact up to rounding, or of factors rounded to 11 bits.
Products = Literal["ieee", "tf32"]
#: Mixed precision.
Amp = Literal["off", "bf16", "fp16"]
#: Engines of the supernet.
Engine = Literal["stacked", "modular"]
#: The layers before the first cell, by the images they are made for.
Stem = Literal["cifar", "imagenet"]
#: Where networks of cells have the paper's law: ``xavier``, in every convolution; ``published``, only in those with a
#: rule other than ``bp``, as in the code published with the paper. All other weights have PyTorch's law.
Initialisation = Literal["xavier", "published"]
#: Laws of initial weights and of random feedback: PyTorch's, or Xavier uniform.
LawName = Literal["default", "xavier"]
#: Residual networks: those for small images, by depth, and those for ImageNet.
ResNet = Literal["resnet20", "resnet32", "resnet44", "resnet56", "resnet110", "resnet18", "resnet50"]
#: SoftHebb networks, named after the datasets that they suit, and the network of FastHebb.
SoftHebb = Literal["cifar10", "imagenette", "mnist", "fashion-mnist", "fasthebb"]
#: Losses of blocks: cross-entropy of a head and similarity of features, or one of them.
LocalLoss = Literal["predsim", "pred", "sim"]
#: Plain networks: perceptrons, and small convolutional networks.
Plain = Literal["mlp", "cnn"]
#: How a network learns: by one loss at its end, by a loss of each block, by forward passes only (PEPITA, and the
#: forward-forward algorithm), or by predictive coding.
TrainerName = Literal["end-to-end", "local", "pepita", "ff", "pc"]
#: Those under which layers have no learning rule.
WITHOUT_RULES: tuple[TrainerName, ...] = ("pepita", "ff", "pc")
#: Perturbations in robust search: a random sign at every pixel, or the sign of the true gradient.
Perturbation = Literal["off", "noise", "fgsm"]
#: What an attacker differentiates: the feedback that the network learns by, or the true gradient.
Gradient = Literal["feedback", "true"]
#: Sets of random image operations by torchvision: RandAugment (Cubuk et al. 2020), TrivialAugment (Müller and Hutter
#: 2021), and AutoAugment (Cubuk et al. 2019) with the policy found on a dataset.
Policy = Literal[
    "none", "randaugment", "trivialaugment", "autoaugment-cifar10", "autoaugment-svhn", "autoaugment-imagenet"
]
