"""Arguments of the wrong kind: each public function names the argument and what it expects."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import bionas_fast as bf
from bionas_fast import InputError
from helpers.genotypes import GENOTYPE

MODEL = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))

WRONG = {
    "search": (lambda: bf.search("digits"), "config: expected SearchConfig or None, got str; write bf.SearchConfig("),
    "search of a training": (lambda: bf.search(bf.TrainConfig()), "config: expected SearchConfig or None"),
    "seeds": (lambda: bf.repeat_search(seeds="3"), "seeds: expected int, got str"),
    "search without a folder": (lambda: bf.search(out=False), "out: a search is written to a folder"),
    "seeds of a search": (lambda: bf.repeat_search(3, seeds=1), "config: expected SearchConfig or None, got int"),
    "train": (lambda: bf.train("runs/a"), "genotype: expected Genotype or None, got str; bf.Genotype.load(PATH)"),
    "train with": (lambda: bf.train(GENOTYPE, {"epochs": 1}), "config: expected TrainConfig or None, got dict"),
    "resnet": (lambda: bf.train_resnet("resnet20"), "config: expected ResNetConfig or None, got str"),
    "plain": (lambda: bf.train_plain("mlp"), "config: expected PlainConfig or None, got str"),
    "softhebb": (lambda: bf.train_softhebb("cifar10"), "config: expected SoftHebbConfig or None, got str"),
    "compare": (lambda: bf.compare_rules(GENOTYPE, "usf"), "config: expected RunConfig or None, got str"),
    "variants": (lambda: bf.compare_rules(GENOTYPE, variants="usf"), "variants: expected a list, got 'usf'"),
    "genotypes": (lambda: bf.compare_genotypes([GENOTYPE]), "genotypes: expected Mapping, got list"),
    "evaluate": (lambda: bf.evaluate(MODEL, "digits"), "images: expected labelled images or batches of them, got str"),
    "evaluate what": (lambda: bf.evaluate("run", "digits"), "network: expected Module, got str"),
    "attack": (lambda: bf.attack("run", "digits"), "network: expected Module, got str; bf.load(RUN) reads one"),
    "attack on": (lambda: bf.attack(MODEL, "digits"), "data: expected Dataset or tuple or list, got str"),
    "attack how": (lambda: bf.attack(MODEL, (), "fgsm"), "config: expected AttackConfig or None, got str"),
    "estimate": (lambda: bf.estimate("cifar10-paper"), "config: expected RunConfig, got str"),
    "load": (lambda: bf.load(MODEL), "run: expected str or PathLike, got Sequential"),
    "export": (lambda: bf.export(MODEL, "a.onnx"), "run: expected str or PathLike, got Sequential"),
    "convert": (lambda: bf.convert([MODEL], "usf"), "model: expected Module, got list"),
    "convert to": (lambda: bf.convert(MODEL, 3), "rule: expected a rule, a mapping of patterns or a function, got int"),
    "to_torch": (lambda: bf.to_torch("run"), "model: expected Module, got str"),
    "rule_shares": (lambda: bf.rule_shares(3), "model: expected Module, got int"),
    "true_gradients": (lambda: bf.true_gradients(3).__enter__(), "model: expected Module, got int"),
    "build_network": (lambda: bf.build_network("biodarts2"), "genotype: expected Genotype, got str"),
    "channels": (lambda: bf.build_network(GENOTYPE, channels=3.5), "channels: expected int, got float"),
    "build_supernet": (lambda: bf.build_supernet(cells="4"), "cells: expected int, got str"),
    "build_resnet": (lambda: bf.build_resnet("resnet20", num_classes="10"), "num_classes: expected int, got str"),
    "load_dataset": (lambda: bf.load_dataset(3), "dataset: expected str, got int; such as 'digits'"),
    "rule as stride": (
        lambda: bf.nn.Conv2d(3, 4, 3, "usf"),
        "stride: expected that of torch.nn's layer, got 'usf'; a learning rule is",
    ),
}


@pytest.mark.parametrize(("call", "message"), WRONG.values(), ids=WRONG)
def test_the_argument_is_named(call, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError) as error:
        call()
    assert str(error.value).startswith(message)
    assert not any(tmp_path.iterdir())


def test_truth_is_no_number():
    with pytest.raises(InputError, match="channels: expected int, got bool"):
        bf.build_network(GENOTYPE, channels=True)


def test_batches_of_images_can_be_evaluated():
    data = bf.load_dataset("digits")
    expected = bf.evaluate(MODEL, data.test)
    batches = list(data.test.batches(100, torch.device("cpu")))
    whole = tuple(torch.cat(part) for part in zip(*batches, strict=True))
    for given in (whole, batches, DataLoader(TensorDataset(*whole), batch_size=77)):
        found = bf.evaluate(MODEL, given)
        assert found["accuracy"] == expected["accuracy"]
        assert found["loss"] == pytest.approx(expected["loss"], rel=1e-6)
    with pytest.raises(InputError, match="images: expected at least one"):
        bf.evaluate(MODEL, [])


@pytest.mark.parametrize(
    ("layer", "arguments", "name"),
    [
        ("Conv2d", (3, 4, 3, "usf"), "stride"),
        ("Conv2d", (3, 4, 3, 1, "usf"), "padding"),
        ("ConvTranspose2d", (3, 4, 3, "usf"), "stride"),
        ("LazyConv2d", (4, 3, "usf"), "stride"),
        ("LazyConvTranspose2d", (4, 3, "usf"), "stride"),
        ("Linear", (3, 4, "usf"), "bias"),
        ("Linear", (3, 4, True, "usf"), "device"),
        ("LazyLinear", (4, "usf"), "bias"),
        ("TransposedLinear", (4, 2, "usf"), "device"),
        ("MultiheadAttention", (4, 2, "usf"), "dropout"),
        ("HebbianConv2d", (3, 4, 3, "oja"), "stride"),
        ("HebbianLinear", (3, 4, "oja"), "bias"),
    ],
    ids=str,
)
def test_a_rule_must_be_named(layer, arguments, name):
    """A rule without its name would be another argument of torch.nn's layer."""
    rule = next(argument for argument in arguments if isinstance(argument, str))
    with pytest.raises(InputError, match=f"^{name}: .* got '{rule}'; a learning rule is rule='{rule}'$"):
        getattr(bf.nn, layer)(*arguments)


@pytest.mark.parametrize(
    ("config", "settings", "message"),
    [
        ("SearchConfig", {"engine": "modualr"}, "engine: .*got 'modualr'; did you mean 'modular'"),
        ("ResNetConfig", {"architecture": "resnet21"}, "architecture: .*got 'resnet21'; did you mean .*'resnet20'"),
        ("ResNetConfig", {"initialisation": "xavir"}, "initialisation: .*did you mean 'xavier'"),
        ("TrainConfig", {"amp": 16}, "amp: .*got 16; did you mean 'fp16'"),
    ],
    ids=str,
)
def test_words_that_are_no_value_of_a_setting(config, settings, message):
    with pytest.raises(InputError, match=message):
        getattr(bf, config)(**settings)
