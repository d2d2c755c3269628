"""A training step of a published genotype at the paper's size, next to the same network of torch.nn's modules.

In float32, and under autocast to bfloat16.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable

import torch
from torch import nn
from torch.nn import functional as F

import bionas_fast as bf
from bionas_fast.space.publications import published
from measuring import interleaved, printed, relative

CHANNELS, CELLS, BATCH = 36, 20, 8
#: In processes whose C library keeps what is freed, as in a training of its own; see test_feedback_layers.
KEPT = {"MALLOC_TRIM_THRESHOLD_": str(2**31 - 1), "MALLOC_MMAP_THRESHOLD_": str(2**30)}


NARROW = ", bf16"


def network(name: str, cells: int = CELLS) -> nn.Module:
    """The network of ``biodarts2``: its rules, ``bp`` in our layers, or torch.nn's."""
    name, genotype = name.removesuffix(NARROW), published("biodarts2").genotype
    net = bf.build_network(genotype if name == "rules" else genotype.with_rule("bp"), channels=CHANNELS, cells=cells)
    return (bf.to_torch(net) if name == "torch.nn" else net).train()


def batch() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(BATCH, 3, 32, 32, generator=generator), torch.randint(10, (BATCH,), generator=generator)


def step(net: nn.Module, narrow: bool = False) -> Callable[[], object]:
    """A step of the published training: SGD with momentum and weight decay, gradients clipped."""
    x, y = batch()
    # So small a rate leaves the networks what they are.
    optimiser = torch.optim.SGD(net.parameters(), lr=1e-9, momentum=0.9, weight_decay=3e-4)

    def run() -> None:
        optimiser.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=narrow):
            loss = F.cross_entropy(net(x), y)
        loss.backward()
        nn.utils.clip_grad_norm_(net.parameters(), 5.0)
        optimiser.step()

    return run


def gradient(net: nn.Module, dtype: torch.dtype, narrow: bool = False) -> torch.Tensor:
    net, (x, y) = copy.deepcopy(net).to(dtype), batch()
    with torch.autocast("cpu", torch.bfloat16, enabled=narrow):
        loss = F.cross_entropy(net(x.to(dtype)), y)
    loss.backward()
    return torch.cat([p.grad.flatten().double() for _, p in sorted(net.named_parameters()) if p.grad is not None])


def times(rounds: int = 15) -> dict[str, float]:
    networks = {name: network(name) for name in ("torch.nn", "bp", "rules")}
    exact = gradient(networks["torch.nn"], torch.float64)
    errors = {name: ((gradient(networks[name], torch.float32) - exact).norm() / exact.norm()).item()
              for name in ("torch.nn", "bp")}  # fmt: skip
    assert errors["bp"] < 1.5 * errors["torch.nn"] < 0.1, errors  # ReLU amplifies rounding in so deep a network
    # Of so deep a network in bfloat16 no digit of the gradient is right, whatever computes it.
    flat = {name: network(name, cells=3) for name in ("torch.nn", "bp")}
    exact = gradient(flat["torch.nn"], torch.float64)
    errors = {name: ((gradient(net, torch.float32, narrow=True) - exact).norm() / exact.norm()).item()
              for name, net in flat.items()}  # fmt: skip
    assert errors["bp"] < 1.2 * errors["torch.nn"] < 0.6, errors
    rules = network("rules", cells=3)
    exact = gradient(rules, torch.float64)
    own = gradient(rules, torch.float32, narrow=True)
    with bf.use_backend("reference"):
        modules = gradient(rules, torch.float32, narrow=True)
    errors = {
        name: ((found - exact).norm() / exact.norm()).item() for name, found in (("rules", own), ("modules", modules))
    }
    assert errors["rules"] < 1.2 * errors["modules"] < 0.6, errors
    with torch.no_grad():
        x, _ = batch()
        for name in ("bp", "rules"):
            assert relative(networks[name].eval()(x), networks["torch.nn"].eval()(x)) < 1e-3
            networks[name].train()
        networks["torch.nn"].train()
    steps = {name: step(net) for name, net in networks.items()}
    steps |= {f"{name}{NARROW}": step(networks[name], narrow=True) for name in ("torch.nn", "rules")}
    return interleaved(steps, rounds)


def peak(name: str) -> float:
    """MiB that steps need above what importing and the network take."""
    program = f"""
import torch
from bionas_fast import native
native.load()
from measuring import highest, forget_highest
from test_genotype_step import network, step
run = step(network({name!r}), {name.endswith(NARROW)})
forget_highest()
before = highest()
for _ in range(3):
    run()
print(highest() - before)
"""
    return float(printed(program))


def test_genotype_step(benchmark, report):
    program = "import json, test_genotype_step as t; print(json.dumps(t.times()))"
    seconds = benchmark.pedantic(lambda: json.loads(printed(program, **KEPT)), rounds=1)
    what = f"training step of biodarts2, C = {CHANNELS}, {CELLS} cells, {BATCH} images"
    plain = f"torch.nn{NARROW}"
    own = {name: value for name, value in seconds.items() if name != plain}
    report.ratios(what, own, "torch.nn", "[at least 1.5]")
    report.ratios(what, {"torch.nn": seconds["torch.nn"], plain: seconds[plain]}, "torch.nn", "")
    report.ratios(
        what,
        {"rules": own["rules"], f"rules{NARROW}": own[f"rules{NARROW}"]},
        "rules",
        "[with AVX-512-BF16: at least 1.2]",
    )
    memory = {name: peak(name) for name in seconds}
    goals = {"bp": "[at most 0.6]", "rules": "[at most 0.6]", plain: "", f"rules{NARROW}": "[at most 0.35]"}
    for name, goal in goals.items():
        share = memory[name] / memory["torch.nn"]
        report.add(f"peak memory of it, {name}", f"{share:.2f} of torch.nn ({memory[name]:.0f} MiB) {goal}".rstrip())
