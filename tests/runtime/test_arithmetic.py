"""The precision of products and deterministic algorithms: settings of torch that hold inside a block."""

from __future__ import annotations

import os

import pytest
import torch
from torch import nn

from bionas_fast.errors import InputError
from bionas_fast.kernels import launching
from bionas_fast.runs.execution import execute
from bionas_fast.runs.progress import Progress
from bionas_fast.runtime import arithmetic
from bionas_fast.runtime.arithmetic import precision, repeatable
from bionas_fast.runtime.isolation import exclusive
from bionas_fast.searching import Search
from helpers.distributed_worker import BASE

SMALL = BASE.with_settings(space="bionas", cells=1, epochs=1)
MATMUL, CUDNN = torch.backends.cuda.matmul, torch.backends.cudnn


def flags() -> tuple:
    """Both sets of torch's flags; None where one contradicts the other."""

    def read(owner: object) -> bool | None:
        try:
            return owner.allow_tf32
        except RuntimeError:
            return None

    newer = (MATMUL.fp32_precision, CUDNN.conv.fp32_precision, CUDNN.rnn.fp32_precision)
    return *newer, read(MATMUL), read(CUDNN)


@pytest.fixture(autouse=True)
def _restored_flags():
    before = flags()
    yield
    MATMUL.allow_tf32, CUDNN.allow_tf32 = before[3:]
    MATMUL.fp32_precision, CUDNN.conv.fp32_precision, CUDNN.rnn.fp32_precision = before[:3]
    assert flags() == before


def older_on() -> None:
    MATMUL.allow_tf32 = CUDNN.allow_tf32 = True


def older_off() -> None:
    MATMUL.allow_tf32 = CUDNN.allow_tf32 = False


def newer_on() -> None:
    MATMUL.fp32_precision = CUDNN.conv.fp32_precision = CUDNN.rnn.fp32_precision = "tf32"


def newer_off() -> None:
    CUDNN.conv.fp32_precision = "ieee"


USERS = {"defaults": lambda: None, "on": older_on, "off": older_off, "newer-on": newer_on, "newer-off": newer_off}


@pytest.mark.parametrize("user", USERS.values(), ids=USERS)
@pytest.mark.parametrize("products", ["ieee", "tf32"])
def test_one_policy_for_convolutions_products_and_kernels(user, products):
    """Also for compilers, which read the older flags; whatever the user has set is restored, after an error, too."""
    user()
    before = flags()
    wanted = products == "tf32"

    def fails() -> None:
        with precision(products):
            assert {CUDNN.conv.fp32_precision == "tf32", MATMUL.fp32_precision == "tf32"} == {wanted}
            assert (MATMUL.allow_tf32, CUDNN.allow_tf32) == (wanted, wanted)
            assert launching.product_precision(torch.float32) == products
            assert launching.product_precision(torch.bfloat16) == "ieee"
            raise KeyError

    with pytest.raises(KeyError):
        fails()
    assert all(now == own for now, own in zip(flags(), before, strict=True) if own is not None)


def test_unknown_precision():
    with pytest.raises(InputError, match=r"unknown precision 'tf23'.*tf32"), precision("tf23"):
        pass
    with pytest.raises(InputError, match="precision: input should be 'ieee' or 'tf32'"):
        SMALL.with_settings(precision="bf16")


@pytest.mark.parametrize("products", ["ieee", "tf32"])
def test_a_run_has_the_precision_of_its_settings(products, monkeypatch):
    """In forward and backward pass and in what runs inside of a step; around it, the user's."""
    older_on()
    before, seen = flags(), []
    trainer = Search(SMALL.with_settings(precision=products))

    def note(*_: object) -> None:
        seen.append(launching.product_precision(torch.float32))
        with exclusive():
            seen.append(launching.product_precision(torch.float32))

    trainer.net.classifier.register_forward_hook(note)
    trainer.net.classifier.register_full_backward_hook(note)
    trainer.enter_epoch()
    trainer.step()
    assert len(seen) == 8  # forward and backward, of alphas and of weights
    assert {*seen} == {products}
    assert flags() == before
    with exclusive():
        assert launching.product_precision(torch.float32) == "ieee"


def test_deterministic_algorithms_inside_the_block():
    utils = torch.utils.deterministic
    for enabled, warn_only in ((False, False), (True, True), (True, False)):
        torch.use_deterministic_algorithms(enabled, warn_only=warn_only)
        CUDNN.benchmark = True
        with repeatable():
            assert torch.are_deterministic_algorithms_enabled()
            assert not torch.is_deterministic_algorithms_warn_only_enabled()
            assert not CUDNN.benchmark
            assert utils.fill_uninitialized_memory == enabled  # the user's mode fills it
        assert torch.are_deterministic_algorithms_enabled() == enabled
        assert torch.is_deterministic_algorithms_warn_only_enabled() == warn_only
        assert CUDNN.benchmark and utils.fill_uninitialized_memory
    CUDNN.benchmark = False
    with repeatable(False):
        assert torch.are_deterministic_algorithms_enabled()


class Unordered(nn.Module):
    """An operation without a deterministic implementation, on any device."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.clone().put_(torch.zeros(1, dtype=torch.int64), x.flatten()[:1].detach())


def test_an_operation_that_does_not_repeat_is_named():
    trainer = Search(SMALL.with_settings(deterministic=True))
    trainer.net.classifier = nn.Sequential(Unordered(), trainer.net.classifier)
    with pytest.raises(InputError, match="deterministic: put_ has no deterministic implementation on cpu"):
        execute(trainer, None, Progress())
    trainer = Search(SMALL)
    trainer.net.classifier = nn.Sequential(Unordered(), trainer.net.classifier)
    with pytest.raises(RuntimeError, match="put_ does not have"):  # of the caller's own setting
        execute(trainer, None, Progress())


def test_the_workspace_of_cublas_is_set_unless_the_user_has(monkeypatch):
    name = "CUBLAS_WORKSPACE_CONFIG"
    monkeypatch.setenv(name, "")
    monkeypatch.delenv(name)
    Search(SMALL)
    assert name not in os.environ
    Search(SMALL.with_settings(deterministic=True))
    assert os.environ[name] == ":4096:8"
    monkeypatch.setenv(name, ":16:8")
    arithmetic.prepare_repeatable()
    assert os.environ[name] == ":16:8"


def test_a_deterministic_run_resumes_bit_for_bit():
    """Stopped in the middle of an epoch, and resumed from its state."""
    config = SMALL.with_settings(deterministic=True)
    whole, stopped, resumed = (Search(config) for _ in range(3))
    for trainer, steps in ((whole, 3), (stopped, 2)):
        trainer.enter_epoch()
        for _ in range(steps):
            trainer.step()
    resumed.load_state_dict(stopped.state_dict())
    resumed.enter_epoch()
    resumed.step()
    for name, value in whole.net.state_dict().items():
        assert torch.equal(value, resumed.net.state_dict()[name]), name
