"""Learned feedback: its gradient, wherever a gradient goes, and the rules that learn B or follow the norm of W.

Oracle of Kolen-Pollack: the loss does not enter W - B, which obeys the optimiser's recursion for a gradient of zero.
"""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.checkpoint import checkpoint

import bionas_fast as bf
from bionas_fast import InputError, rules
from bionas_fast.kernels.feedback import reference
from bionas_fast.nn.learned import Part, _flat, clip_gradients
from bionas_fast.supernet.weight_bank import WeightBank
from helpers.learned import weights_of
from helpers.registries import restored
from helpers.supernets import gradients as supernet_gradients
from helpers.supernets import with_nodes
from helpers.tolerances import assert_close


@pytest.fixture
def registry():
    with restored():
        yield


def network(rule: str = "kp") -> nn.Sequential:
    torch.manual_seed(0)
    layers = (
        nn.Conv2d(2, 4, 3, padding=1), nn.Tanh(), nn.Conv2d(4, 4, 3, groups=4), nn.Conv2d(4, 6, 1), nn.Tanh(),
        nn.ConvTranspose2d(6, 3, 2), nn.Flatten(), nn.Linear(75, 3),
    )  # fmt: skip
    return bf.convert(nn.Sequential(*layers), rule, seed=1).double()


def batch(seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(4, 2, 6, 6, generator=generator, dtype=torch.float64), torch.arange(4) % 3


def loss_of(model: nn.Module, seed: int = 0) -> Tensor:
    x, y = batch(seed)
    return F.cross_entropy(model(x), y)


def distances(model: nn.Module) -> list[Tensor]:
    """W - B of every layer that learns B."""
    layers = [m for m in model.modules() if isinstance(m, bf.nn.FeedbackLayer) and m.rule == "kp"]
    return [(layer.weight - layer.feedback).detach().clone() for layer in layers]


def gradients(model: nn.Module, run: nn.Module | None = None) -> dict[str, Tensor]:
    model.zero_grad()
    loss_of(run or model).backward()
    return {name: p.grad.clone() for name, p in model.named_parameters()}


# Kolen-Pollack


OPTIMISERS = {
    "sgd": (torch.optim.SGD, {"lr": 0.1, "weight_decay": 0.2}),
    "no-decay": (torch.optim.SGD, {"lr": 0.1}),
    "momentum": (torch.optim.SGD, {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.1}),
    "nesterov": (torch.optim.SGD, {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.1, "nesterov": True}),
    "adamw": (torch.optim.AdamW, {"lr": 0.1, "weight_decay": 0.3}),
}


@pytest.mark.parametrize(("kind", "options"), OPTIMISERS.values(), ids=OPTIMISERS)
def test_the_distance_of_b_and_w_follows_from_the_optimiser_alone(kind, options):
    model, steps = network(), 6
    start = distances(model)
    # The optimiser of W - B: the difference of two equal gradients is zero.
    alone = [nn.Parameter(own.clone()) for own in start]
    optimisers = kind(model.parameters(), **options), kind(alone, **options)
    for step in range(steps):
        for optimiser in optimisers:
            optimiser.zero_grad()
        loss_of(model, step).backward()
        for own in alone:
            own.grad = torch.zeros_like(own)
        for optimiser in optimisers:
            optimiser.step()
    for now, own, first in zip(distances(model), alone, start, strict=True):
        assert_close(now, own.detach())
        if "momentum" not in options:
            shrunk = (1 - options["lr"] * options.get("weight_decay", 0.0)) ** steps
            assert_close(now.norm(), shrunk * first.norm())
    assert not any(torch.equal(b, w) for b, w in zip(bf.nn.learned_feedback(model), start, strict=True))


@pytest.mark.parametrize("way", ["accumulation", "scaler", "checkpoint", "reentrant", "eval"])
def test_the_gradient_of_b_is_that_of_w_wherever_it_goes(way):
    model = network()
    plain = gradients(model)
    for name, own in weights_of(model).items():
        if name.endswith("weight"):
            assert torch.equal(plain[f"{name[:-6]}feedback"], plain[name]) and own.grad.any()
    model.zero_grad()
    if way == "accumulation":
        x, y = batch()
        for images, labels in zip(x.split(1), y.split(1), strict=True):
            (F.cross_entropy(model(images), labels) / 4).backward()
    elif way == "scaler":
        scaler, optimiser = torch.amp.GradScaler("cpu", init_scale=1024.0), torch.optim.SGD(model.parameters())
        scaler.scale(loss_of(model)).backward()
        assert_close(model[0].feedback.grad, 1024 * plain["0.feedback"])
        scaler.unscale_(optimiser)
    elif way in ("checkpoint", "reentrant"):
        x, y = batch()
        out = checkpoint(model, x.requires_grad_(), use_reentrant=way == "reentrant")
        F.cross_entropy(out, y).backward()
    else:
        loss_of(model.eval()).backward()
    for name, own in model.named_parameters():
        assert_close(own.grad, plain[name])


def test_training_clips_by_the_norm_of_the_weights():
    model = network()
    plain = gradients(model)
    own = torch.cat([plain[name].flatten() for name in weights_of(model)])
    norm = clip_gradients(model, model.parameters(), 1e-3)
    assert_close(norm, own.norm())
    for name, p in model.named_parameters():
        assert_close(p.grad, plain[name] * (1e-3 / (own.norm() + 1e-6)))


def test_frozen_weights_teach_nothing_and_frozen_feedback_is_feedback_alignment():
    model, twin = network(), network("fa")
    for own, other in zip(model, twin, strict=True):
        if hasattr(own, "rule"):
            own.weight.requires_grad_(False)
            other.set_feedback(own.feedback)
    loss_of(model).backward()
    assert all(p.grad is None for p in bf.nn.learned_feedback(model))
    model.requires_grad_(True)
    for p in bf.nn.learned_feedback(model):
        p.requires_grad_(False)
    learned, fixed = (gradients_of_weights(net) for net in (model, twin))
    for name, gradient in fixed.items():
        assert torch.equal(learned[name], gradient)


def gradients_of_weights(model: nn.Module) -> dict[str, Tensor]:
    own = weights_of(model)
    return dict(zip(own, torch.autograd.grad(loss_of(model), list(own.values())), strict=True))


def test_feedback_is_a_parameter_but_no_weight():
    model, plain = network(), network("usf")
    learned = bf.nn.learned_feedback(model)
    assert [p.shape for p in learned] == [layer.weight.shape for layer in model if hasattr(layer, "rule")]
    assert bf.nn.learned_feedback(plain) == []
    assert bf.nn.count_weights(model) == {"kp": bf.nn.count_weights(plain)["usf"]}
    frozen = bf.convert(nn.Linear(3, 2).requires_grad_(False), "kp")
    assert not frozen.feedback.requires_grad and bf.rule_shares(frozen) == {"frozen": 1.0}
    # Another rule takes the parameter away; the same one leaves it to its optimiser.
    layer, own = model[0], model[0].feedback
    layer.reset_parameters()
    assert layer.feedback is own
    layer.set_rule("fa")
    assert dict(layer.named_buffers()).keys() == {"feedback"} and "feedback" not in dict(layer.named_parameters())
    layer.set_rule("kp")
    assert isinstance(layer.feedback, nn.Parameter) and not dict(layer.named_buffers())


def test_averages_of_models_average_learned_feedback():
    model = network()
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.5), use_buffers=True)
    start, optimiser = distances(model), torch.optim.SGD(model.parameters(), lr=0.1)
    for step in range(3):
        optimiser.zero_grad()
        loss_of(model, step).backward()
        optimiser.step()
        average.update_parameters(model)
    for now, first in zip(distances(average), start, strict=True):
        assert_close(now, first)
    assert not torch.equal(average.module[0].feedback, model[0].feedback)


def test_compiled_models_learn_feedback():
    torch._dynamo.reset()
    model = network()
    wanted = gradients(model)
    compiled = torch.compile(copy.deepcopy(model), fullgraph=True, backend="aot_eager")
    found = gradients(compiled._orig_mod, compiled)
    for name, gradient in wanted.items():
        assert_close(found[name], gradient)
    part = Part("kp", model[0].law, tuple(model[0].weight.shape))
    arguments = (model[0].weight, model[0].feedback, None, *_flat((part,)))
    torch.library.opcheck(torch.ops.bionas_fast.couple.default, arguments)


def test_a_users_rule_updates_b_from_w_its_gradient_and_random_numbers(registry):
    @rules.register
    class Drifting(rules.Rule):
        name = "drifting"
        stores = "learned"
        redraws = True

        def feedback(self, weight, state):
            return 2 * state.stored

        def update(self, weight, weight_grad, state):
            return state.uniform() * weight_grad + weight - state.stored

    for make in (lambda layer: layer, lambda layer: torch.compile(layer, fullgraph=True, backend="aot_eager")):
        torch._dynamo.reset()
        torch.manual_seed(0)
        layer = bf.nn.Linear(3, 2, rule="drifting", dtype=torch.float64)
        run, x = make(layer), torch.randn(4, 3, dtype=torch.float64)
        for draw in range(2):
            layer.zero_grad()
            inputs = x.clone().requires_grad_()
            numbers = reference.uniform(layer.weight.shape, layer.feedback_stream).double()
            assert int(layer.feedback_stream[1]) == draw
            run(inputs).square().sum().backward()
            assert_close(layer.feedback.grad, numbers * layer.weight.grad + layer.weight - layer.feedback)
            assert_close(inputs.grad, 2 * layer(x) @ (2 * layer.feedback))


def test_updates_of_another_shape_are_refused(registry):
    @rules.register
    class Wrong(rules.Rule):
        name = "wrong"
        mode = "stored"
        stores = "learned"

        def update(self, weight, weight_grad, state):
            return weight_grad.sum()

    with pytest.raises(InputError, match=r"update\(\) of rule 'wrong' returned a gradient of shape \[\]"):
        bf.nn.Linear(3, 2, rule="wrong")(torch.ones(1, 3)).sum().backward()


# Strict normalisation


def test_strict_normalisation_keeps_signs_and_norms():
    model = network("nsf")
    layers = [layer for layer in model if hasattr(layer, "rule")]
    weights = [*(layer.weight for layer in layers)]
    transposed = bf.nn.TransposedLinear(5, 4, rule="nsf", dtype=torch.float64)
    for b, w in [*((layer.feedback_weight(), w) for layer, w in zip(layers, weights, strict=True)),
                 (transposed.feedback_weight().t(), transposed.weight.t())]:  # fmt: skip
        assert torch.equal(b.sign(), w.sign())
        for own, filter in zip(b.flatten(1), w.flatten(1), strict=True):
            assert_close(own.norm(), filter.norm())
            assert_close(own.abs(), (filter.norm() / math.sqrt(len(filter))).expand(len(filter)))
    for layer in network("nsf_layer"):
        if hasattr(layer, "rule"):
            b, w = layer.feedback_weight(), layer.weight
            assert_close(b, w.sign() * (w.norm() / math.sqrt(w.numel())))
    assert all(not dict(layer.named_buffers()) for layer in layers)


# The stacked supernet


@pytest.mark.parametrize("backend", ["reference", "native"])
def test_kolen_pollack_in_the_stacked_supernet(backend):
    space = with_nodes(
        bf.space.get_space("bionas").restricted(("kp", "fa", "nsf"), ("sep_conv_3x3", "skip_connect")), 2
    )
    assert "skip_connect@kp" not in map(str, space.candidates)
    net = bf.build_supernet(space=space, channels=3, cells=2, in_channels=2, seed=1).double()
    if backend == "native":
        net = net.float()
    banks = [m for m in net.modules() if isinstance(m, WeightBank) and m.learned is not None]

    def apart() -> list[Tensor]:
        assert len(banks) > 1
        weights = [bank.weight.split(bank.lengths) for bank in banks]
        return [
            torch.cat([own[k] for k in bank.learning]) - bank.learned for own, bank in zip(weights, banks, strict=True)
        ]

    optimiser = torch.optim.SGD(net.weight_parameters(), lr=0.05, weight_decay=0.5)
    with bf.use_backend(backend):
        start = [own.detach() for own in apart()]
        for seed in range(3):
            x, y = batch(seed)
            optimiser.zero_grad()
            F.cross_entropy(net(x.to(next(net.parameters()).dtype)), y).backward()
            optimiser.step()
    for now, first in zip(apart(), start, strict=True):
        assert_close(now.detach(), (1 - 0.05 * 0.5) ** 3 * first)
        assert not torch.equal(now, first)
    weights = sum(p.numel() for p in net.weight_parameters())
    modular = net.to_modular()
    assert sum(p.numel() for p in modular.weight_parameters()) == weights
    assert sum(p.numel() for p in bf.nn.learned_feedback(modular)) == sum(bank.learned.numel() for bank in banks)


# Direct feedback


def mlp(rule: str) -> nn.Sequential:
    torch.manual_seed(0)
    sizes = zip((6, 8, 8), (8, 8, 3), strict=True)
    layers = [bf.nn.Linear(*size, bias=False, rule=rule, num_classes=3, seed=k) for k, size in enumerate(sizes)]
    return bf.nn.connect_direct_feedback(nn.Sequential(*layers).double())


def directly(rule: str) -> nn.Module:
    """A model of every kind of layer, and of one whose rows are positions."""
    torch.manual_seed(0)
    layers = (
        nn.Conv2d(2, 4, 3, stride=2, padding=1), nn.Tanh(), nn.Conv2d(4, 4, (1, 2), groups=2), nn.Tanh(),
        nn.ConvTranspose2d(4, 3, 2, stride=2), nn.Flatten(2), nn.Linear(24, 5), nn.Tanh(), nn.Flatten(),
        nn.Linear(15, 3),
    )  # fmt: skip
    return bf.convert(nn.Sequential(*layers), rule, seed=1).double()


def test_direct_kolen_pollack_learns_by_the_error_at_the_logits():
    model, inputs = directly("dkp"), {}
    for name, layer in model.named_modules():
        layer.register_forward_pre_hook(lambda _, args, name=name: inputs.update({name: args[0].detach()}))
    plain = gradients(model)
    x, y = batch()
    e = (model(x).softmax(1) - F.one_hot(y, 3)).detach() / len(x)
    conv = {  # ⟨E, B ⋆ x⟩ has the gradient E ⊗ x, with the mean over positions
        "0": lambda x, b: F.conv2d(x, b, stride=2, padding=1).mean((2, 3)),
        "2": lambda x, b: F.conv2d(x, b).mean((2, 3)),
        "4": lambda x, b: (
            F.conv2d(torch.ones(1, 1, 6, 4).double(), b.flatten(0, 1)[:, None], stride=2)
            .reshape(3, 1, *x.shape[1:])
            .mul(x)
            .sum((2, 3, 4))
            .div(6 * 4)
            .t()
        ),
        "6": lambda x, b: F.linear(x, b).mean(1),
        "9": F.linear,
    }
    for name, run in conv.items():
        b = model[int(name)].feedback.detach().requires_grad_()
        (wanted,) = torch.autograd.grad(run(inputs[name], b), b, e)
        assert_close(plain[f"{name}.feedback"], wanted)


def test_frozen_direct_feedback_is_dfa_bit_for_bit():
    learned, fixed = directly("dkp"), directly("dfa")
    for p in bf.nn.learned_feedback(learned):
        p.requires_grad_(False)
    x, y = batch()
    results = []
    for model in (learned, fixed):
        image = x.clone().requires_grad_()
        leaves = [image, *weights_of(model).values()]
        results.append(torch.autograd.grad(F.cross_entropy(model(image), y), leaves))
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_direct_feedback_becomes_the_product_of_the_weights_above():
    model, rate, decay, steps = mlp("dkp"), 0.05, 0.1, 300
    optimiser = torch.optim.SGD(model.parameters(), lr=rate, weight_decay=decay)
    teacher = torch.randn(6, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))

    def cosines() -> list[float]:
        product, found = torch.eye(3, dtype=torch.float64), []
        for layer in reversed(model):
            product = product @ layer.weight.detach()
            found.append(F.cosine_similarity(layer.feedback.detach().flatten(), product.flatten(), dim=0).item())
        return found

    start, head = cosines(), (model[2].weight - model[2].feedback).detach().norm()
    for step in range(steps):
        x = torch.randn(32, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(step))
        optimiser.zero_grad()
        (0.5 * (model(x) - 0.5 * x @ teacher).square().sum(1).mean()).backward()
        optimiser.step()
    # Of the last layer B and W get the same gradient.
    assert_close((model[2].weight - model[2].feedback).detach().norm(), (1 - rate * decay) ** steps * head)
    assert all(now > 0.9 for now in cosines()) and max(start) < 0.2


# Weight mirrors


def mirrored(rate: float = 1.0, steps: int = 1, **arguments: float) -> tuple[list[Tensor], list[Tensor]]:
    """The changes of B by a pause, and W, of layers of several kinds."""
    model = network("wm")
    layers = [layer for layer in model if hasattr(layer, "rule")] + [bf.nn.TransposedLinear(5, 7, rule="wm").double()]
    before = [layer.feedback.clone() for layer in layers]
    bf.mirror(nn.ModuleList(layers), steps, rate=rate, **arguments)
    assert all(layer.feedback_stream[1] == steps for layer in layers)
    changes = [layer.feedback - own for layer, own in zip(layers, before, strict=True)]
    return changes, [layer.weight.detach() for layer in layers]


def test_a_weight_mirror_changes_b_by_the_weight_in_expectation():
    """E ΔB = η σ² W; each entry of the mean over n samples has a variance of at most σ⁴ (‖W_k‖² + W_ki²)/n."""
    n, rate, sigma = 20_000, 0.1, 2.0
    for change, w in zip(*mirrored(rate, noise=sigma, decay=0.0, samples=n), strict=True):
        largest = (w.movedim(1, 0) if w.shape == (5, 7) else w).flatten(1).square().sum(1).max()
        deviation = rate * sigma**2 * math.sqrt(2 * largest / n)
        assert (change - rate * sigma**2 * w).abs().max() < 5 * deviation
        assert (change - rate * sigma**2 * w).abs().max() > 0.1 * deviation  # it is noise


def test_decay_shrinks_b_and_a_seed_gives_the_same_noise():
    first, second = (mirrored(0.1, 2, samples=8)[0] for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first[:-1], second[:-1], strict=True))
    model = network("wm")
    start = model[7].feedback.clone()
    bf.mirror(model, 3, rate=1e-30, noise=1.0, decay=0.25)
    assert_close(model[7].feedback, 0.75**3 * start)


def test_the_angle_of_a_mirror_falls_as_one_over_the_root_of_its_steps():
    def tangent(steps: int) -> float:
        torch.manual_seed(0)
        layer = bf.nn.Linear(40, 30, rule="wm", seed=1).double()
        layer.set_feedback(torch.zeros(30, 40))
        bf.mirror(layer, steps, decay=0.0, samples=1)
        return math.tan(math.radians(layer.feedback_angle()))

    few, many = tangent(400), tangent(6400)
    assert few == pytest.approx(math.sqrt(41 / 400), rel=0.1) and few / many == pytest.approx(4, rel=0.1)


def test_mirrors_in_a_search_and_errors():
    space = with_nodes(bf.space.get_space("bionas").restricted(("wm", "fa"), ("sep_conv_3x3", "skip_connect")), 2)
    assert "skip_connect@wm" not in map(str, space.candidates)
    nets = [bf.build_supernet(space=space, channels=3, cells=1, in_channels=2, seed=1, engine="modular")]
    nets += [bf.build_supernet(space=space, channels=3, cells=1, in_channels=2, seed=1, engine="stacked")]
    fixed = [m.feedback.clone() for m in nets[0].modules() if getattr(m, "rule", "") == "fa"]
    for net in nets:
        bf.mirror(net, 60, rate=0.1)
    ours, theirs = nets[1].to_modular(), nets[0]
    layers = [m for m in theirs.modules() if getattr(m, "rule", "") == "wm"]
    twins = [m for m in ours.modules() if getattr(m, "rule", "") == "wm"]
    for layer, twin in zip(layers, twins, strict=True):
        assert_close(twin.feedback, layer.feedback)
        assert twin.feedback_angle() < 30
    same = [m.feedback for m in ours.modules() if getattr(m, "rule", "") == "fa"]
    assert all(torch.equal(a, b) for a, b in zip(same, fixed, strict=True))
    for name, value in (("steps", -1), ("samples", 0), ("rate", 0.0), ("noise", -1.0)):
        with pytest.raises(InputError, match=f"{name}: expected"):
            bf.mirror(nets[0], **{name: value})
    with pytest.raises(InputError, match="expected stores = 'signed' of a weight mirror, got None"):
        rules.register(type("Empty", (rules.Rule,), {"name": "empty", "mirrors": True}))


def test_training_mirrors_between_epochs(tmp_path):
    config = bf.ResNetConfig(
        dataset="small:digits,images=100", epochs=2, batch_size=64, rule="wm", mirror_every=2, mirror_steps=3
    )
    result = bf.train_resnet(config, out=tmp_path / "run")
    layers = [m for m in bf.load(result.run_dir).modules() if getattr(m, "rule", "") == "wm"]
    assert layers and all(layer.feedback_stream[1] == 3 for layer in layers)


# Product feedback


def product_model(rule: str) -> nn.Sequential:
    torch.manual_seed(0)
    layers = (nn.Conv2d(2, 4, 3, padding=1), nn.Tanh(), nn.Conv2d(4, 6, 3, groups=2), nn.Flatten(), nn.Linear(96, 3))
    return bf.convert(nn.Sequential(*layers), rule, seed=1).double()


def first_of(layer: nn.Module) -> Tensor:
    """F as one matrix, from its formula: blocks of a group's n outputs, uniform with the variance 1/n."""
    groups = getattr(layer, "groups", 1)
    n = len(layer.weight) // groups
    stream = torch.stack([layer.feedback_stream[0], torch.tensor(2**32 - 1)])
    numbers = reference.uniform((groups, n, n), stream).double()
    return torch.block_diag(*((2 * numbers - 1) * math.sqrt(3 / n)))


def test_product_feedback_follows_f_times_what_f_made_of_the_weights():
    """R - Fᵀ W gets no gradient: under weight decay R becomes Fᵀ W, and B = F R becomes F Fᵀ W."""
    model, rate, decay, steps = product_model("pfa"), 0.1, 0.2, 5
    layers = [layer for layer in model if hasattr(layer, "rule")]

    def apart() -> list[Tensor]:
        return [x.feedback.detach().flatten(1) - first_of(x).t() @ x.weight.detach().flatten(1) for x in layers]

    start, optimiser = apart(), torch.optim.SGD(model.parameters(), lr=rate, weight_decay=decay)
    for step in range(steps):
        for layer in layers:
            b = first_of(layer) @ layer.feedback.detach().flatten(1)
            assert_close(layer.feedback_weight().flatten(1), b)
        optimiser.zero_grad()
        loss_of(model, step).backward()
        optimiser.step()
    for now, first in zip(apart(), start, strict=True):
        assert_close(now, (1 - rate * decay) ** steps * first)


def test_product_feedback_through_the_identity_is_kolen_pollack(registry):
    @rules.register
    class Identity(type(rules.get("pfa"))):
        name = "identity"

        def first(self, size, state):
            return torch.eye(size, dtype=torch.float64).expand(state.groups, size, size)

    found, wanted = (gradients(product_model(rule)) for rule in ("identity", "kp"))
    for name, gradient in wanted.items():
        assert torch.equal(found[name], gradient)


def test_product_feedback_in_the_stacked_supernet_and_compiled():
    space = with_nodes(bf.space.get_space("bionas").restricted(("pfa", "kp", "fa"), ("dil_conv_3x3",)), 2)
    stacked = bf.build_supernet(space=space, channels=2, cells=2, in_channels=2, seed=1).double()
    modular = stacked.to_modular()
    found = []
    for net in (modular, stacked):
        loss_of(net).backward()
        found.append(dict(net.named_parameters()) if net is modular else supernet_gradients(net))
    for name, p in found[0].items():
        if p.grad is not None:
            assert_close(p.grad, found[1][name].detach())
    torch._dynamo.reset()
    layer = product_model("pfa")[2]
    layers = layer, torch.compile(copy.deepcopy(layer), fullgraph=True, backend="aot_eager")
    x = torch.randn(2, 4, 4, 4, dtype=torch.float64)
    own, other = (torch.autograd.grad(run(x).square().sum(), [*run.parameters()]) for run in layers)
    for a, b in zip(own, other, strict=True):
        assert_close(a, b)
