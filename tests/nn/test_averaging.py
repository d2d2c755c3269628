"""Averages of models by every utility: streams, counters and indices are the source's, weights are averaged."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import timm.utils
import torch
from torch import Tensor, nn
from torch.optim import swa_utils

import bionas_fast as bf
from helpers.tolerances import assert_close

DECAY = 0.9


def torch_average(**how) -> Callable[[nn.Module], tuple[nn.Module, Callable[[nn.Module], None]]]:
    def make(model: nn.Module):
        average = swa_utils.AveragedModel(model, **how)
        average.update_parameters(model)  # the first is a copy
        return average.module, average.update_parameters

    return make


def timm_average(kind: type) -> Callable[[nn.Module], tuple[nn.Module, Callable[[nn.Module], None]]]:
    def make(model: nn.Module):
        average = kind(model, decay=DECAY)
        return (average.ema if kind is timm.utils.ModelEma else average.module), average.update

    return make


EMA = {
    "torch-ema-multi": torch_average(multi_avg_fn=swa_utils.get_ema_multi_avg_fn(DECAY), use_buffers=True),
    "torch-ema": torch_average(avg_fn=swa_utils.get_ema_avg_fn(DECAY), use_buffers=True),
    "torch-ema-without-buffers": torch_average(avg_fn=swa_utils.get_ema_avg_fn(DECAY)),
    "timm-v1": timm_average(timm.utils.ModelEma),
    "timm-v2": timm_average(timm.utils.ModelEmaV2),
    "timm-v3": timm_average(timm.utils.ModelEmaV3),
}
SWA = {
    "torch-swa": torch_average(use_buffers=True),
    "torch-swa-function": torch_average(avg_fn=swa_utils.get_swa_avg_fn(), use_buffers=True),
}


def layers() -> nn.Module:
    body = [nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(64, 5)]
    return bf.convert(nn.Sequential(*body), {"0": "brsf", "4": "fa"})


def plastic() -> nn.Module:
    return nn.Sequential(bf.nn.HebbianConv2d(3, 4, 3, every=2), bf.nn.PredictiveConv2d(4, 5, 3))


def supernet() -> nn.Module:
    return bf.build_supernet(channels=4, cells=2, num_classes=5)


MODELS = {"layers": layers, "plastic": plastic, "supernet": supernet}


def exact(model: nn.Module) -> dict[str, Tensor]:
    """The integer buffers of our modules, and random tensors that are drawn once."""
    foreign = {f"{name}.num_batches_tracked" for name, m in model.named_modules() if type(m) is nn.BatchNorm2d}
    once = ("feedback", "stored", "direction")
    return {
        name: buffer.clone()
        for name, buffer in model.named_buffers()
        if name not in foreign and (not buffer.is_floating_point() or name.rpartition(".")[2] in once)
    }


def train(model: nn.Module) -> None:
    optimiser = torch.optim.SGD(model.parameters(), 0.1)
    model(torch.randn(4, 3, 6, 6)).square().mean().backward()
    optimiser.step()


@pytest.mark.parametrize("build", MODELS.values(), ids=MODELS)
@pytest.mark.parametrize("make", {**EMA, **SWA}.values(), ids=[*EMA, *SWA])
def test_an_average_holds_the_state_of_its_source(make, build):
    torch.manual_seed(0)
    model = build()
    average, update = make(model)
    before = exact(average)
    for _ in range(3):
        train(model)
        update(model)
    found, wanted = exact(average), exact(model)
    assert len(wanted) >= 2
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        assert found[name].dtype == value.dtype
        assert torch.equal(found[name], value), name
    assert any(not torch.equal(before[name], value) for name, value in wanted.items()), "some of it moves"


@pytest.mark.parametrize("make", EMA.values(), ids=EMA)
def test_weights_are_averaged(make):
    torch.manual_seed(0)
    model = layers()
    average, update = make(model)
    wanted = model[0].weight.detach().clone()
    for _ in range(3):
        train(model)
        update(model)
        wanted = DECAY * wanted + (1 - DECAY) * model[0].weight.detach()
    assert_close(average[0].weight, wanted, torch.float32)


def test_a_compiled_source_and_a_device_for_the_average():
    model = layers()
    average = timm.utils.ModelEmaV2(model, decay=DECAY, device="cpu")
    train(model)
    average.update(torch.compile(model, backend="eager"))
    assert torch.equal(average.module[0].feedback_stream, model[0].feedback_stream)
    swa = swa_utils.AveragedModel(model, device="cpu", use_buffers=True)
    for _ in range(2):
        train(model)
        swa.update_parameters(torch.compile(model, backend="eager"))
    assert torch.equal(swa.module[0].feedback_stream, model[0].feedback_stream)


def test_models_without_our_layers_are_averaged_as_before():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    average = swa_utils.AveragedModel(model, avg_fn=lambda own, source, _: (own + source) // 2, use_buffers=True)
    for _ in range(3):
        train(model)
        average.update_parameters(model)
    assert average.module[1].num_batches_tracked == 2  # 1, then (1 + 2) // 2, then (1 + 3) // 2
