"""Supervised training: averaged weights, parts of a batch, mixing, held-out images, residual networks."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

import bionas_fast as bf
from bionas_fast import InputError
from bionas_fast.data import Augment
from bionas_fast.data.mixing import Mixing
from bionas_fast.nn import FeedbackLayer
from bionas_fast.runs.progress import Progress
from bionas_fast.training.genotype import Training
from bionas_fast.training.resnet import ResNetTraining
from helpers.genotypes import GENOTYPE
from helpers.runs import advance
from helpers.tolerances import TOLERANCES

SMALL = {"epochs": 1, "channels": 1, "cells": 2, "batch_size": 64, "dataset": "digits"}


def training(**settings):
    return Training(GENOTYPE, bf.TrainConfig(**{**SMALL, **settings}))


def test_averaged_weights_are_tested_and_loaded(tmp_path):
    config = bf.TrainConfig(**SMALL, ema_decay=0.75)
    result = bf.train(GENOTYPE, config, out=tmp_path / "run")
    run = training(ema_decay=0.75)
    weights = []
    with run.isolated_rng():
        run.enter_epoch()
        for _ in range(len(run.phase.batches)):
            run.step()
            weights.append({name: p.detach().clone() for name, p in run.net.named_parameters()})
        run.end_epoch()
    average = weights[0]
    for new in weights[1:]:
        average = {name: 0.75 * old + 0.25 * new[name] for name, old in average.items()}
    loaded = dict(bf.load(tmp_path / "run").named_parameters())
    for name, parameter in result.network.named_parameters():
        torch.testing.assert_close(parameter.detach(), average[name])
        assert torch.equal(loaded[name], parameter)
    assert result.metrics[-1]["test_accuracy"] == result.test_accuracy


def test_some_epochs_end_with_an_evaluation(tmp_path):
    """Every second and the last one, also of a run that is resumed; nothing else differs."""
    settings = {**SMALL, "epochs": 5, "valid_fraction": 0.5}
    whole = bf.train(GENOTYPE, bf.TrainConfig(**settings), out=False)
    config = bf.TrainConfig(**settings, evaluate_every=2)

    class Stopping(Progress):
        def epoch(self, row):
            if row["epoch"] == 3:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        bf.train(GENOTYPE, config, out=tmp_path / "run", progress=Stopping())
    found = bf.train(resume=tmp_path / "run")
    measured = [name for name in whole.metrics[0] if name.startswith(("test_", "valid_"))]
    for number, (own, expected) in enumerate(zip(found.metrics, whole.metrics, strict=True), start=1):
        left_out = measured if number in (1, 3) else []
        del own["seconds"]
        assert own == {name: value for name, value in expected.items() if name not in ("seconds", *left_out)}
    best = torch.load(tmp_path / "run" / "best.pt", weights_only=True)
    accuracies = {number: row["valid_accuracy"] for number, row in enumerate(found.metrics, 1) if number in (2, 4, 5)}
    assert best["epoch"] == max(accuracies, key=lambda number: (accuracies[number], -number))
    assert config.work(100, 10)[0].evaluations == 3


@pytest.mark.parametrize("parts", [2, 3, 7])
def test_parts_of_a_batch_have_the_gradient_of_the_whole(parts):
    """Batch normalisation aside, for which the network is in evaluation mode."""
    x, y = torch.randn(10, 1, 8, 8), torch.arange(10)

    def gradients(accumulate):
        run = training(accumulate=accumulate, label_smoothing=0.1)
        run.net.eval()
        found = {}
        run._descend = lambda: found.update({n: p.grad.clone() for n, p in run.net.named_parameters()})
        loss, hits, _ = run.train_step(x, y)
        return float(loss), int(hits), found

    whole, split = gradients(1), gradients(parts)
    assert split[0] == pytest.approx(whole[0], rel=1e-5)
    assert split[1] == whole[1]
    for name, gradient in whole[2].items():
        torch.testing.assert_close(split[2][name], gradient, rtol=1e-4, atol=1e-6)


def test_held_out_images_choose_the_best_checkpoint(tmp_path):
    config = bf.TrainConfig(**{**SMALL, "epochs": 3}, valid_fraction=0.25)
    result = bf.train(GENOTYPE, config, out=tmp_path / "run")
    total = len(bf.load_dataset("digits").labels)
    run = training(valid_fraction=0.25)
    assert len(run.held_out) == round(0.25 * total)
    assert len(run.phase.batches.labels) == total - len(run.held_out)
    valid = [row["valid_accuracy"] for row in result.metrics]
    best = torch.load(tmp_path / "run" / "best.pt", weights_only=True)
    assert best["epoch"] == 1 + valid.index(max(valid))
    assert not (tmp_path / "run" / "best.pt").samefile(tmp_path / "run" / "checkpoint.pt")


def test_without_held_out_images_nothing_is_chosen_by_the_test_images(tmp_path):
    bf.train(GENOTYPE, bf.TrainConfig(**SMALL), out=tmp_path / "run")
    assert not (tmp_path / "run" / "best.pt").exists()


@pytest.mark.parametrize(("mixup", "cutmix"), [(0.5, 0.0), (0.0, 0.5), (0.5, 0.5)])
def test_mixing_mixes_labels_as_images(mixup, cutmix):
    """With images that are one-hot in their class, every pixel's mean over the image is the label's probability."""
    torch.manual_seed(0)
    labels = torch.arange(6)
    images = F.one_hot(labels, 6).float()[:, :, None, None].expand(6, 6, 8, 8)
    mixed = False
    for _ in range(20):
        x, p = Mixing(mixup, cutmix, 6)(images, labels)
        torch.testing.assert_close(x.mean(dim=(2, 3)), p)
        torch.testing.assert_close(p.sum(1), torch.ones(6))
        mixed = mixed or not torch.equal(p, F.one_hot(labels, 6).float())
    assert mixed
    x, y = Mixing(0.0, 0.0, 6)(images, labels)
    assert x is images
    assert y is labels


@pytest.mark.parametrize(
    "policy", ["randaugment", "trivialaugment", "autoaugment-cifar10", "autoaugment-svhn", "autoaugment-imagenet"]
)
@pytest.mark.parametrize("channels", [1, 3])
def test_policies(policy, channels):
    """Each image is changed by itself; the generator alone decides; PyTorch's generator is left alone."""
    images = torch.rand(12, channels, 16, 16)
    augment = Augment(policy=policy)
    before = torch.get_rng_state()
    first, again, other = (augment(images, torch.Generator().manual_seed(seed)) for seed in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert first.shape == images.shape
    assert first.min() >= 0
    assert first.max() <= 1
    same = augment(images[:1].expand(12, -1, -1, -1), torch.Generator().manual_seed(0))
    assert len({image.numpy().tobytes() for image in same}) > 3
    with pytest.raises(InputError, match="randaugment"):
        Augment(policy="randaugm")


@pytest.mark.parametrize("amp", ["off", "bf16"])
def test_residual_networks_train(tmp_path, amp):
    dataset = "small:digits,images=400"
    config = bf.ResNetConfig(dataset=dataset, rule="usf", epochs=2, batch_size=20, learning_rate=0.1, amp=amp)
    result = bf.train_resnet(config, out=tmp_path / "run")
    assert result.test_accuracy > 50
    assert {m.rule for m in result.network.modules() if isinstance(m, FeedbackLayer)} == {"usf"}
    data = bf.load_dataset(dataset)
    found = bf.evaluate(bf.load(tmp_path / "run"), data.test)
    assert found["accuracy"] == result.test_accuracy


def test_a_compiled_network_trains_as_the_network_does():
    plain, compiled = training(), training(compile=True)
    compiled.call = torch.compile(compiled.net, backend="eager")
    for run in (plain, compiled):
        advance(run, 2)
    for one, other in zip(plain.net.parameters(), compiled.net.parameters(), strict=True):
        torch.testing.assert_close(one, other)


class CountReadings(TorchDispatchMode):
    """Counts the ops that wait for the device: those that turn a tensor into a number."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += func.overloadpacket in (torch.ops.aten._local_scalar_dense, torch.ops.aten.is_nonzero)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("settings", [{}, {"accumulate": 2, "auxiliary_weight": 0.4}])
def test_a_step_reads_nothing_from_the_device(settings):
    run = training(**settings, epochs=2)
    with run.isolated_rng():
        run.enter_epoch()
        x, y = next(run.phase.batches)
        with CountReadings() as readings:
            outcome = run.train_step(x, y)
        assert readings.count == 0
        assert outcome.loss.ndim == outcome.correct.ndim == outcome.norm.ndim == 0


def test_losses_read_late_are_those_read_at_once():
    rows, shown = [], []
    for every in (1, 3):
        run = training()
        run.read_every = every
        with run.isolated_rng():
            run.enter_epoch()
            shown.append([run.step() for _ in range(len(run.phase.batches))])
            rows.append({name: value for name, value in run.end_epoch().items() if name != "seconds"})
    assert rows[0] == rows[1]
    assert shown[1][:6] == [None, None, *[shown[0][2]] * 3, shown[0][5]]


def test_an_error_read_late_names_its_step():
    run = training()
    run.read_every = 4
    with run.isolated_rng():
        run.enter_epoch()
        run.step()
        with torch.no_grad():
            run.net.classifier.bias[0] = torch.nan
        run.step()
        run.step()
        with pytest.raises(InputError, match=r"loss nan.* in epoch 1, step 2 of "):
            run.step()


def test_drop_path_is_linear_or_constant():
    def probabilities(**settings):
        run = training(drop_path=0.3, epochs=3, **settings)
        found = []
        run.call = lambda x, drop_path: found.append(drop_path) or run.net(x, drop_path)
        x, y = torch.randn(4, 1, 8, 8), torch.arange(4)
        for epoch in range(3):
            run.epoch = epoch
            run.prepare()
            run.train_step(x, y)
        return found

    assert probabilities() == pytest.approx([0.0, 0.1, 0.2])
    assert probabilities(drop_path_schedule="constant") == [0.3] * 3


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"architecture": "resnet21"}, "did you mean .*'resnet20'"),
        ({"rule": "uzf"}, "usf"),
        ({"initialisation": "xavir"}, "xavier"),
    ],
)
def test_bad_settings_of_residual_networks(settings, message):
    with pytest.raises(InputError, match=message):
        bf.ResNetConfig(**settings)


def test_a_residual_network_resumes_exactly(tmp_path):
    settings = {"mixup": 0.3, "cutmix": 0.3, "policy": "randaugment"}
    config = bf.ResNetConfig(dataset="small:digits,images=200", rule="brsf", epochs=1, batch_size=50, **settings)
    whole, part = ResNetTraining(config), ResNetTraining(config)
    advance(whole)
    advance(part, 2)
    resumed = ResNetTraining(config)
    resumed.load_state_dict(part.state_dict())
    advance(resumed)
    for name, value in whole.net.state_dict().items():
        assert torch.equal(resumed.net.state_dict()[name], value)


@pytest.mark.parametrize("setting", ["label_smoothing", "mixup", "cutmix"])
def test_rules_that_need_one_target_refuse_mixed_labels(setting):
    for rule in ("drtp", "sdfa"):
        with pytest.raises(InputError, match=f"{setting}: expected 0 for the rule {rule}"):
            ResNetTraining(bf.ResNetConfig(dataset="small:digits,images=100", rule=rule, **{setting: 0.5}))
    ResNetTraining(bf.ResNetConfig(dataset="small:digits,images=100", rule="dfa", **{setting: 0.5}))


def test_signals_do_not_depend_on_loss_scaling_and_parts_of_a_batch():
    """One step under drtp: in one part and three, and with the loss multiplied and the gradient divided by 2¹⁰."""
    x, y = torch.randn(12, 1, 8, 8), torch.arange(12) % 10
    found = []
    for settings in ({}, {"accumulate": 3}, {"scaled": True}):
        scaled = settings.pop("scaled", False)
        run = Training(GENOTYPE.with_rule("drtp"), bf.TrainConfig(**SMALL, **settings))
        run.net.eval()
        if scaled:
            run.precision.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
        run.train_step(x, y)
        found.append([p.detach().clone() for p in run.net.parameters()])
    for other in found[1:]:
        for own, expected in zip(other, found[0], strict=True):
            torch.testing.assert_close(own, expected, **TOLERANCES[torch.float32])


@pytest.mark.parametrize("amp", ["off", "bf16"])
def test_local_losses_resume_exactly_with_averaged_weights(amp):
    config = bf.ResNetConfig(
        dataset="small:digits,images=200", rule="usf", epochs=1, batch_size=50, trainer="local", ema_decay=0.5, amp=amp
    )
    whole, part = ResNetTraining(config), ResNetTraining(config)
    heads = [p.detach().clone() for p in whole.local.heads.parameters()]
    advance(whole)
    advance(part, 2)
    resumed = ResNetTraining(config)
    resumed.load_state_dict(part.state_dict())
    advance(resumed)
    assert resumed.trained is resumed.average.module
    for own, other in ((whole.learners, resumed.learners), (whole.average, resumed.average)):
        for name, value in own.state_dict().items():
            assert torch.equal(other.state_dict()[name], value)
    assert all(not torch.equal(p, old) for p, old in zip(whole.local.heads.parameters(), heads, strict=True))


def test_local_losses_train_cells(tmp_path):
    """The loss of the step is that of :func:`bionas_fast.local_losses`; a saved network has no heads."""
    settings = {**SMALL, "channels": 2, "trainer": "local", "local_loss": "pred", "label_smoothing": 0.1}
    run = Training(GENOTYPE, bf.TrainConfig(**settings))
    x, y = torch.randn(8, 1, 8, 8), torch.arange(8)
    with torch.no_grad():
        logits, *features = run.local.outputs(x)
        wanted = F.cross_entropy(logits, y, label_smoothing=0.1)
        for head, own in zip(run.local.heads, features, strict=True):
            wanted = wanted + F.cross_entropy(head(own), y, label_smoothing=0.1)
    run.net.eval()
    run.net.train()
    assert float(run.train_step(x, y).loss) == pytest.approx(float(wanted), rel=1e-5)
    result = bf.train(GENOTYPE, bf.TrainConfig(**{**settings, "epochs": 4, "learning_rate": 0.1}), out=tmp_path / "run")
    assert result.test_accuracy > 30
    found = bf.evaluate(bf.load(tmp_path / "run"), bf.load_dataset("digits").test)
    assert found["accuracy"] == result.test_accuracy


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"local_beta": 0.5}, "local_beta: not used by the trainer end-to-end"),
        ({"trainer": "local", "local_loss": "sim", "local_beta": 0.5}, "local_beta: not used by the local loss sim"),
        ({"trainer": "local", "accumulate": 2}, "accumulate: expected 1"),
        ({"trainer": "local", "compile": True}, "compile: expected false"),
        ({"trainer": "locl"}, "did you mean 'local'"),
    ],
)
def test_settings_of_local_losses(settings, message):
    with pytest.raises(InputError, match=message):
        bf.ResNetConfig(**settings)
