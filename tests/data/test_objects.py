"""Images given as objects, in place of the name of a dataset."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import Dataset as TorchDataset
from torch.utils.data import IterableDataset, TensorDataset

import bionas_fast as bf
from bionas_fast import BionasWarning, InputError
from bionas_fast.data import as_dataset
from helpers.genotypes import GENOTYPE

X = torch.randint(256, (40, 3, 6, 6), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
Y = torch.arange(40) % 2
SMALL = {"channels": 1, "cells": 1, "epochs": 1, "batch_size": 8, "operations": ("skip_connect", "max_pool_3x3")}


class Photographs(TorchDataset):
    """Items of PIL, as torchvision's datasets without a transform."""

    def __len__(self):
        return len(X)

    def __getitem__(self, index):
        return Image.fromarray(X[index].permute(1, 2, 0).numpy()), int(Y[index])


@pytest.mark.parametrize(
    "part",
    [(X, Y), (X.numpy(), Y.numpy()), [X, Y.to(torch.int32)], TensorDataset(X, Y), Photographs()],
    ids=["tensors", "arrays", "list", "tensor dataset", "images of PIL"],
)
def test_every_form_holds_the_same_images(part):
    found = as_dataset((part, (X[:10], Y[:10])))
    assert torch.equal(found.images, X)
    assert torch.equal(found.labels, Y)
    assert torch.equal(found.test_images, X[:10])
    assert found.num_classes == 2
    assert found.name.startswith("python:")
    alone = as_dataset(part)
    assert (len(alone.labels), len(alone.test_labels)) == (32, 8)
    assert alone.test_labels.bincount().tolist() == [4, 4]
    everything = torch.cat([alone.images, alone.test_images]).flatten(1).double().sum(dim=1)
    assert everything.sort().values.tolist() == X.flatten(1).double().sum(dim=1).sort().values.tolist()


def test_grey_and_floating_point():
    grey = as_dataset((np.float64(X[:, 0].numpy()) / 255, Y))
    assert grey.images.shape == (32, 1, 6, 6)
    assert grey.images.dtype == torch.float32
    assert as_dataset(grey) is grey


class Endless(IterableDataset):
    def __iter__(self):
        return iter(())


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ("digits", "data: expected a Dataset, .* got str"),
        ((X, Y, X), "data: expected a Dataset, .* got tuple"),
        ((X, Y.float()), r"data: labels: expected integers \[N\], got torch.float32"),
        ((X, Y[:-1]), "labels"),
        ((X.float(), Y), "images"),
        (((X, Y), (X[:, :1], Y)), "must agree in"),
        (((X, Y), X), r"data\[1\]: expected \(images, labels\)"),
        ([[1, "a"], Y], "data: labels: expected a tensor or an array"),
        (Endless(), "data: expected a dataset of torch with a length, got Endless"),
        (TensorDataset(X), r"data: expected items \(image, label\)"),
    ],
    ids=range(10),
)
def test_what_is_no_dataset(data, message):
    with pytest.raises(InputError, match=message):
        as_dataset(data)


def test_a_search_and_a_training(tmp_path):
    config = bf.SearchConfig(**SMALL)
    found = bf.search(config, data=(X, Y), out=tmp_path / "search")
    text = (found.run_dir / "config.yaml").read_text()
    assert "dataset: python:arrays\n" in text
    assert "num_classes" not in text or "num_classes: 2" in text
    with pytest.warns(BionasWarning, match="this run is complete"):
        again = bf.search(resume=found.run_dir, data=(X, Y))
    assert again.genotype == found.genotype
    with pytest.raises(InputError, match="'python:arrays': its images were given in Python; give them there again"):
        bf.search(resume=found.run_dir)
    with pytest.raises(InputError, match="images or labels are not those that the run began with"):
        bf.search(resume=found.run_dir, data=(X.flip(0), Y))
    with pytest.raises(InputError, match="dataset: 'cifar10' is set, and data 'python:arrays' given"):
        bf.search(config.with_settings(dataset="cifar10"), data=(X, Y))
    settings = {"channels": 1, "cells": 1, "epochs": 1, "batch_size": 8}
    trained = bf.train(
        found.genotype, bf.TrainConfig(**settings), data=(TensorDataset(X, Y), (X[:10], Y[:10])), out=False
    )
    expected = bf.evaluate(trained.network, as_dataset(((X, Y), (X[:10], Y[:10]))).test)["accuracy"]
    assert trained.test_accuracy == pytest.approx(expected)
    assert bf.train_resnet(bf.ResNetConfig(epochs=1, batch_size=8), data=(X, Y), out=False).network is not None


def test_images_and_callbacks_of_repeated_runs(tmp_path):
    class Steps(bf.Callback):
        count = 0

        def on_step(self, moment):
            self.count += 1

    settings = {"channels": 1, "cells": 1, "epochs": 1, "batch_size": 8}
    steps, how = Steps(), {"seeds": 2, "data": (X, Y)}
    config = bf.SearchConfig(**settings, operations=("skip_connect",))
    searched = bf.repeat_search(config, **how, out=tmp_path / "searches", callbacks=[steps])
    assert set(searched.genotypes) == {0, 1} and steps.count > 0 and steps.count % 2 == 0
    alone = bf.search(config.with_settings(seed=1), data=(X, Y), out=tmp_path / "alone")
    assert searched.accuracies.values[1] == alone.final_metrics["valid_accuracy"]
    training = bf.TrainConfig(**settings)
    expected = bf.train(GENOTYPE, training, data=(X, Y), out=False).test_accuracy
    for number, table in enumerate(
        (
            bf.compare_rules(
                GENOTYPE, training, **how, out=tmp_path / "rules", variants=["genotype"], callbacks=[steps]
            ),
            bf.compare_genotypes({"own": GENOTYPE}, training, **how, out=tmp_path / "genotypes", callbacks=[steps]),
            bf.repeat_training(GENOTYPE, training, **how, out=tmp_path / "seeds", callbacks=[steps]),
        )
    ):
        (series,) = table.series
        assert series.values[0] == expected, number
    before = steps.count
    networks = bf.repeat_training(
        None, bf.ResNetConfig(epochs=1, batch_size=8), **how, out=tmp_path / "resnet", callbacks=[steps]
    )
    assert len(networks.series[0].values) == 2 and steps.count > before
    with pytest.raises(InputError, match="dataset: 'cifar10' is set, and data 'python:arrays' given"):
        bf.repeat_search(config.with_settings(dataset="cifar10"), **how)
    with pytest.raises(InputError, match="callbacks: expected"):
        bf.repeat_training(GENOTYPE, training, **how, callbacks=[print])


def test_trainings_have_a_folder_by_default_and_none_on_request(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = bf.TrainConfig(channels=1, cells=1, epochs=1, batch_size=8)
    assert bf.train(GENOTYPE, config, data=(X, Y), out=False).run_dir is None
    assert not (tmp_path / "runs").exists()
    made = [
        bf.train(GENOTYPE, config, data=(X, Y)).run_dir,
        bf.train_resnet(bf.ResNetConfig(epochs=1, batch_size=8), data=(X, Y)).run_dir,
    ]
    names = [f"train-python-arrays-{GENOTYPE.hash}-seed0-", "resnet-python-arrays-bp-seed0-"]
    for run, name in zip(made, names, strict=True):
        assert run.parent == Path("runs") and run.name.startswith(name) and (run / "report.html").is_file()
