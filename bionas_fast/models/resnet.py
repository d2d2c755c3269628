"""Residual networks (He et al. 2016), the baselines of the paper: one learning rule on every layer."""

from __future__ import annotations

from typing import get_args

from torch import Tensor, nn
from torch.nn import functional as F

from bionas_fast import rules
from bionas_fast.choices import ResNet
from bionas_fast.errors import expect_count, unknown
from bionas_fast.nn import convert, name_layers
from bionas_fast.runtime.isolation import seeded

#: Residual blocks per stage of the networks for small images, by depth 6n + 2; torchvision builds the others.
_BLOCKS = {f"resnet{6 * n + 2}": n for n in (3, 5, 7, 9, 18)}
RESNETS = get_args(ResNet)


class BasicBlock(nn.Module):
    """Two 3×3 convolutions with BN, added to the input: [N, C_in, H, W] → [N, C_out, ⌈H/stride⌉, ⌈W/stride⌉].

    Where the sizes differ, the input is subsampled and padded with zero channels, half of them on each side: a shortcut
    without parameters (He et al. 2016, option A).
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.stride = stride
        self.padding = (out_channels - in_channels) // 2

    def forward(self, x: Tensor) -> Tensor:
        residual = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        if self.stride > 1 or self.padding:
            x = F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, self.padding, self.padding))
        return F.relu(residual + x)


class SmallResNet(nn.Sequential):
    """The residual network for small images (He et al. 2016, section 4.2): three stages of ``blocks`` blocks.

    Images [N, in_channels, H, W] → logits [N, num_classes]; 16, 32 and 64 channels at full, half and quarter size.
    """

    def __init__(self, blocks: int, num_classes: int, in_channels: int) -> None:
        layers: list[nn.Module] = [nn.Conv2d(in_channels, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU()]
        width = 16
        for channels in (16, 32, 64):
            for block in range(blocks):
                layers.append(BasicBlock(width, channels, 2 if block == 0 and channels > 16 else 1))
                width = channels
        layers += [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, num_classes)]
        super().__init__(*layers)


def build_resnet(
    name: str,
    *,
    rule: str | rules.Rule = "bp",
    num_classes: int = 10,
    in_channels: int = 3,
    initialisation: str = "default",
    seed: int = 0,
) -> nn.Module:
    """Build a residual network with one learning rule on every layer.

    Args:
        name: ``resnet20``, ``resnet32``, ``resnet44``, ``resnet56`` or ``resnet110``, for small images, or
            ``resnet18`` or ``resnet50``, for images of ImageNet's size.
        rule: the learning rule of every convolution and of the classifier.
        num_classes: number of logits.
        in_channels: channels of the images.
        initialisation: the law of weights and random feedback: ``default``, torchvision's initial weights for ResNets
            of ImageNet and PyTorch's for the others, with PyTorch's law for the feedback; or ``xavier``.
        seed: seed of all weights and random feedback; the state of PyTorch's generator is restored.

    Returns:
        A network that maps images [N, in_channels, H, W] to logits [N, num_classes].

    Raises:
        InputError: an unknown name, rule or initialisation; a number below 1.
    """
    if name not in RESNETS:
        raise unknown("network", name, RESNETS)
    for argument, value in {"num_classes": num_classes, "in_channels": in_channels}.items():
        expect_count(argument, value)
    with seeded(seed):
        if name in _BLOCKS:
            network: nn.Module = SmallResNet(_BLOCKS[name], num_classes, in_channels)
        else:
            network = _imagenet(name, num_classes, in_channels)
        convert(
            network,
            rule,
            copy_weights=initialisation == "default",
            feedback_init=initialisation,
            num_classes=num_classes,
            seed=seed,
            inplace=True,
        )
    name_layers(network)
    return network


def residual_blocks(network: nn.Module) -> tuple[str, ...] | None:
    """Return the names of the modules at whose outputs the stem and the blocks of torchvision's ResNets end.

    None for other networks, which are Sequentials of their blocks.
    """
    if isinstance(network, SmallResNet):
        return None
    stages = [name for name, _ in network.named_children() if name.startswith("layer")]
    blocks = (f"{stage}.{name}" for stage in stages for name, _ in network.get_submodule(stage).named_children())
    return ("maxpool", *blocks)


def _imagenet(name: str, num_classes: int, in_channels: int) -> nn.Module:
    import torchvision  # slow to import

    network = getattr(torchvision.models, name)(num_classes=num_classes)
    if in_channels != 3:
        first = network.conv1
        network.conv1 = nn.Conv2d(
            in_channels, first.out_channels, first.kernel_size, first.stride, first.padding, bias=False
        )
        nn.init.kaiming_normal_(network.conv1.weight, mode="fan_out", nonlinearity="relu")
    return network
