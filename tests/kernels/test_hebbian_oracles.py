"""Hebbian updates against recordings of SoftHebb, FastHebb and HebbianCNNPyTorch, and of the corrected BioNAS rule."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

import bionas_fast as bf
from bionas_fast.backends import explain
from bionas_fast.functional import adaptive_rate, hebbian_activity, hebbian_update, raised_cosine, triangle
from helpers.oracles.data import assert_close, cases, load
from helpers.tolerances import RECORDED

DTYPES = [torch.float32, torch.float64]


@pytest.fixture(params=["reference", "native"], autouse=True)
def _backend(request):
    reason = explain("hebbian_update", "cpu").reasons.get(request.param)
    if reason:
        pytest.skip(reason)
    with bf.use_backend(request.param):
        yield


def loaded(topic, case, dtype):
    arrays, info = load(topic, case)
    return {name: array.to(dtype) for name, array in arrays.items()}, info["arguments"]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", cases("softhebb"))
def test_softhebb(case, dtype):
    arrays, a = loaded("softhebb", case, dtype)
    x, padding = arrays["x"], a["padding"]
    if a["padding_mode"] != "zeros":
        x, padding = F.pad(x, [padding] * 4, mode=a["padding_mode"]), 0
    geometry = {"stride": a["stride"], "padding": padding, "dilation": a["dilation"], "groups": a["groups"]}
    u = F.conv2d(x, arrays["weight"], None, **geometry)
    # Errors of u are multiplied by the temperature in y.
    tolerance = RECORDED * (10 if a["t_invert"] > 5 else 1)
    assert_close(u, arrays["u"], RECORDED, "u")
    y = hebbian_activity(u, "softhebb", temperature=a["t_invert"], groups=a["groups"])
    assert_close(y, arrays["y"], tolerance, "y")
    rate = adaptive_rate(arrays["weight"], a["lr"], a["power_lr"]) if a["adaptive"] else arrays["lr_before"]
    assert_close(rate, arrays["lr_before"], RECORDED, "rate")
    for normalisation, name in (("none", "delta_raw"), ("max", "delta_w")):
        weight = arrays["weight"].clone()
        delta = hebbian_update(
            weight, x, u, rule="softhebb", rate=rate, temperature=a["t_invert"], normalisation=normalisation, **geometry
        )
        positions = u.numel() // u.shape[1] if normalisation == "none" else 1
        assert_close(delta * positions, arrays[name], tolerance, name)
    assert_close(weight, arrays["weight_after"], RECORDED, "weight")
    if a["adaptive"]:
        assert_close(adaptive_rate(weight, a["lr"], a["power_lr"]), arrays["lr_after"], 1e-4, "rate after")
    assert_close(triangle(u, a["triangle_power"]), arrays["triangle"], RECORDED, "triangle")


@pytest.mark.parametrize("case", cases("softhebb"))
def test_softhebb_layer(case):
    arrays, a = loaded("softhebb", case, torch.float32)
    layer = bf.nn.HebbianConv2d(
        a["in_channels"], a["out_channels"], a["kernel"], a["stride"], a["padding"], a["dilation"], a["groups"],
        padding_mode=a["padding_mode"], rule="softhebb", adaptive=a["adaptive"], temperature=a["t_invert"],
        rate=a["lr"] if a["adaptive"] else arrays["lr_before"][0].item(), normalisation="max",
    )  # fmt: skip
    layer.plasticity.copy_(arrays["weight"])
    assert_close(layer(arrays["x"]), arrays["u"], RECORDED, "u")
    assert_close(layer.plasticity, arrays["weight_after"], RECORDED, "weight")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", cases("fasthebb"))
def test_fasthebb(case, dtype):
    arrays, a = loaded("fasthebb", case, dtype)
    x, weight = arrays["x"], arrays["weight"].clone()
    u = F.conv2d(x, weight)

    def rows(maps):
        return maps.movedim(1, -1).flatten(0, -2)

    assert_close(rows(u), arrays["s"], RECORDED, "s")
    if a["rule"] == "hpca":
        y = F.relu(u) if a["act"] == "relu" else u
        assert_close(rows(y), arrays["y"], RECORDED, "y")
        delta = hebbian_update(weight, x, u, rule="hpca_relu" if a["act"] == "relu" else "hpca")
        if a["adaptive_step"]:
            delta = delta / a["D"] ** 0.5
    else:
        similarity = u if a["similarity"] == "dot" else raised_cosine(x, weight, u)
        assert_close(rows(similarity), arrays["y"], RECORDED, "y")
        if a["competition"] == "kwta":
            z = hebbian_activity(similarity, "hard_wta")
        else:
            power = a["competition"] == "power"
            z = hebbian_activity(similarity.log() if power else similarity, "soft_wta", temperature=1 / a["k"])
        # A temperature of 50 multiplies the rounding of the similarity.
        assert_close(rows(z), arrays["z"], 1e-4 if dtype == torch.float32 else RECORDED, "z")
        if a["reduction"] == "weighted":  # weights |z| / Σ|z|, a sum instead of a mean
            z = z.square() / z.sum(dim=(0, 2, 3), keepdim=True).clamp_min(1e-30) * (z.numel() // z.shape[1])
        delta = hebbian_update(weight, x, u, z, rule="instar")
    assert_close(delta, arrays["delta_w"], 1e-4 if dtype == torch.float32 else RECORDED, "delta")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", cases("hebbian_conv"))
def test_normalised_hebbian_convolution(case, dtype):
    arrays, a = loaded("hebbian_conv", case, dtype)
    layer = bf.nn.HebbianConv2d(
        a["in_channels"], a["out_channels"], a["kernel"], a["stride"], a["padding"], a["dilation"],
        rule="hebb", rate=a["scale"], normalisation="clamp", dtype=dtype,
    )  # fmt: skip
    layer.plasticity.copy_(arrays["weight"])
    assert_close(layer(arrays["x"]), arrays["conv_output"], RECORDED, "output")
    assert_close(layer.plasticity, arrays["weight_after"], RECORDED, "weight")
    weight = arrays["weight"].clone()
    geometry = {"stride": a["stride"], "padding": a["padding"], "dilation": a["dilation"]}
    delta = hebbian_update(weight, arrays["x"], arrays["conv_output"], rule="hebb", rate=a["scale"], **geometry)
    assert_close(delta, arrays["hebbian_update"], RECORDED, "update")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", cases("miconi"))
def test_updates_obtained_as_gradients(case, dtype):
    arrays, a = loaded("miconi", case, dtype)
    x, y = arrays["x"], arrays["realy"]
    u = F.conv2d(x, arrays["weight"], None, a["stride"])
    assert_close(u, arrays["prelimy"], RECORDED, "u")
    weight = arrays["weight"].clone()
    positions = y.numel() // y.shape[1]
    delta = hebbian_update(
        weight, x, u, y, rule=a["rule"], rate=a["lr"] * positions, normalisation="unit", stride=a["stride"]
    )
    assert_close(-delta * positions, arrays["grad"], RECORDED, "gradient")
    assert_close(weight, arrays["weight_after"], RECORDED, "weight")
