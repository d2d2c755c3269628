"""Published genotypes: their networks have the published sizes."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import bionas_fast as bf
from bionas_fast import InputError
from bionas_fast.models import NetworkOptions
from bionas_fast.space import Candidate, published, published_names

NAMES = {"biodarts2", "darts-v1", "darts-v2", "pc-darts", "p-darts", "eg-nas", "nasnet-a", "amoebanet-a"}


def test_names():
    assert set(published_names()) == NAMES
    with pytest.raises(InputError, match="pc-darts"):
        published("pcdarts")


@pytest.mark.parametrize(
    ("name", "millions"), [("biodarts2", "2.868"), ("darts-v2", "3.349"), ("pc-darts", "3.63"), ("p-darts", "3.43")]
)
def test_published_sizes(name, millions):
    """CIFAR-10, C = 36, 20 cells, without auxiliary head; the figures of the publications."""
    net = bf.build_network(published(name).genotype, channels=36, cells=20, num_classes=10)
    count = sum(p.numel() for p in net.parameters()) / 1e6
    assert f"{count:.{len(millions) - 2}f}" == millions
    assert str(published(name).parameters) == millions


def test_published_size_on_imagenet():
    """DARTS on ImageNet: 4.7 million parameters at C = 48 and 14 cells."""
    net = bf.build_network(
        published("darts-v2").genotype, channels=48, cells=14, num_classes=1000, options=NetworkOptions(stem="imagenet")
    )
    assert round(sum(p.numel() for p in net.parameters()) / 1e6, 1) == 4.7


@pytest.mark.parametrize("name", sorted(NAMES))
def test_networks_run(name):
    net = bf.build_network(published(name).genotype, channels=2, cells=3, num_classes=4)
    net(torch.randn(2, 3, 9, 8)).square().sum().backward()
    assert all(p.grad is not None for p in net.parameters())
    assert published(name).source


def test_the_paper_s_own_genotype_mixes_rules():
    assert set(published("biodarts2").genotype.rules) == {"usf", "frsf"}
    assert set(published("darts-v2").genotype.rules) == {"bp"}


@pytest.mark.parametrize("stride", [1, 2])
def test_factorised_convolution(stride):
    """ReLU, 1×7 of stride (1, s), 7×1 of stride (s, 1), BN, by torch.nn.functional."""
    module = Candidate.parse("conv_7x1_1x7@bp").build(3, stride, searching=True)
    first, second = (m for m in module if isinstance(m, nn.Conv2d))
    x = torch.randn(2, 3, 9, 8)
    y = F.conv2d(F.relu(x), first.weight, stride=(1, stride), padding=(0, 3))
    y = F.conv2d(y, second.weight, stride=(stride, 1), padding=(3, 0))
    assert first.kernel_size == (1, 7)
    torch.testing.assert_close(module(x), F.batch_norm(y, None, None, training=True))


@pytest.mark.parametrize("stride", [1, 2])
def test_sep_conv_7x7(stride):
    module = Candidate.parse("sep_conv_7x7@bp").build(3, stride, searching=True)
    x = torch.randn(2, 3, 9, 8)
    y = x
    for stage, step in zip(module, (stride, 1), strict=True):
        y = F.conv2d(F.relu(y), stage.depthwise.weight, stride=step, padding=3, groups=3)
        y = F.batch_norm(F.conv2d(y, stage.pointwise.weight), None, None, training=True)
    torch.testing.assert_close(module(x), y)


@pytest.mark.parametrize(
    ("size", "window", "stride"), [(8, 5, 3), (7, 5, 2), (6, 5, 1), (10, 5, 5), (4, 2, 2), (12, 6, 6)]
)
def test_pooling_of_the_auxiliary_head(size, window, stride):
    """DARTS pools 8×8 maps by 5×5 windows of stride 3, ImageNet's 7×7 maps by windows of stride 2."""
    from bionas_fast.models.genotype_network import CornerPool

    x = torch.randn(2, 3, size, size)
    torch.testing.assert_close(CornerPool()(x), F.avg_pool2d(x, window, stride))


def test_imagenet_stem():
    net = bf.build_network(
        published("darts-v2").genotype,
        channels=4,
        cells=3,
        num_classes=5,
        options=NetworkOptions(stem="imagenet"),
        auxiliary=True,
    )
    first, second = net._begin(torch.randn(2, 3, 65, 64))
    assert first.shape == (2, 4, 17, 16)
    assert second.shape == (2, 4, 9, 8)
    logits, auxiliary = net(torch.randn(2, 3, 65, 64))
    assert logits.shape == auxiliary.shape == (2, 5)
    # The variant for ImageNet has one normalisation less.
    assert sum(isinstance(m, nn.BatchNorm2d) for m in net.auxiliary) == 1
    with pytest.raises(InputError, match="cells of this genotype have one"):
        bf.build_network(
            bf.Genotype.from_nb201("|nor_conv_3x3~0|+|none~0|skip_connect~1|+|none~0|none~1|nor_conv_3x3~2|"),
            options=NetworkOptions(stem="imagenet"),
        )
    with pytest.raises(InputError, match="cifar"):
        bf.build_network(published("darts-v2").genotype, options=NetworkOptions(stem="cifr"))


def test_the_command_line_knows_them_but_prefers_a_file(tmp_path, monkeypatch):
    from bionas_fast.cli.show import read_genotype

    monkeypatch.chdir(tmp_path)
    assert read_genotype("p-darts") == published("p-darts").genotype
    (tmp_path / "p-darts").write_text(published("darts-v1").genotype.to_json())
    assert read_genotype("p-darts") == published("darts-v1").genotype
