"""The names of datasets; those of this package are known without the modules that load them."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

from bionas_fast.errors import InputError
from bionas_fast.registry import Registry

if TYPE_CHECKING:
    from bionas_fast.data.file_dataset import AnyDataset

#: Called as ``loader(data_dir, download=..., seed=...)``; ``data_dir`` is None for the default folder. The
#: loader of a scheme takes the text after the colon as its first argument.
Loader = Callable[..., "AnyDataset"]
L = TypeVar("L", bound=Loader)

_DATA = "bionas_fast.data"
registry: Registry[Loader] = Registry(
    "dataset",
    builtin={
        **dict.fromkeys(("digits", "fashion-mnist", "mnist", "cifar10", "cifar100"), f"{_DATA}.registry"),
        **dict.fromkeys(("imagenet", "tiny-imagenet"), f"{_DATA}.imagenet"),
        "imagenet16-120": f"{_DATA}.imagenet16",
        "noise:": f"{_DATA}.noise",
        "small:": f"{_DATA}.small",
        **dict.fromkeys(("kmnist", "svhn", "stl10"), f"{_DATA}.torchvision_sets"),
        **dict.fromkeys(("folder:", "npz:"), f"{_DATA}.user_data"),
    },
)


def register_dataset(name: str) -> Callable[[L], L]:
    """Register ``loader(data_dir: Path | None, *, download: bool, seed: int)`` under a name. Use as a decorator.

    The loader returns a :class:`Dataset`, or a :class:`FileDataset` whose images are read in batches. A name that ends
    in a colon is a scheme: ``folder:photos`` calls the loader of ``folder:`` as
    ``loader("photos", data_dir, download=..., seed=...)``.

    Raises:
        InputError: the name is not lower-case letters, digits and hyphens, or is taken by another loader.
    """
    if not name.removesuffix(":").replace("-", "").isalnum() or name != name.lower():
        raise InputError(f"a dataset's name must be lower-case, such as 'fashion-mnist', not {name!r}")

    def register(loader: L) -> L:
        registry.register(name, loader)
        return loader

    return register


def dataset_names() -> tuple[str, ...]:
    """Return the names of all registered datasets, in the order of registration."""
    return registry.names()


def describe_dataset(name: str) -> str:
    """Return the documentation of the loader of a dataset, whose first line says what the images are.

    Raises:
        InputError: there is no such dataset.
    """
    return inspect.getdoc(registry.get(name)) or ""
