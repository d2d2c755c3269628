"""PyTorch's private names: whether this torch still has them, and what happens without each."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.checkpoint import checkpoint

from bionas_fast import torch_private
from bionas_fast.functional import hebbian_update
from bionas_fast.nn import Conv2d, Linear
from helpers.feedback_cases import saved_tensors_as_they_are

NAMES = {
    "_len_torch_dispatch_stack": torch._C,
    "_top_saved_tensors_default_hooks": torch._C._autograd,
    "_current_graph_task_id": torch._C,
    "_raw_saved_weight": torch._C._functions.ConvolutionBackward0,
    "_version": Tensor,
    "_foreach_add_": torch,
    "_are_functorch_transforms_active": torch._C,
    "_current_level": torch.autograd.forward_ad,
    "_CheckpointFrame": torch.utils.checkpoint,
    "queue_callback": torch.autograd.Variable._execution_engine,
    "_get_backend": torch.distributed.ProcessGroup,
}


@pytest.mark.parametrize("name", NAMES)
def test_torch_has_the_name(name):
    assert hasattr(NAMES[name], name), "torch has changed: see bionas_fast/torch_private.py"


def test_torch_marks_constants_as_we_do():
    def function() -> str:
        return ""

    assert vars(torch.compiler.assume_constant_result(function)) == {torch_private.CONSTANT: True}


def test_a_dispatch_mode_is_seen():
    assert not torch_private.has_dispatch_modes()
    with FakeTensorMode():
        assert torch_private.has_dispatch_modes()


def test_hooks_on_saved_tensors_are_seen():
    assert not torch_private.has_saved_tensor_hooks()
    with saved_tensors_as_they_are():
        assert torch_private.has_saved_tensor_hooks()


def test_a_backward_pass_is_seen():
    x, seen = torch.ones(1, requires_grad=True), []
    y = x * 2
    y.register_hook(lambda grad: seen.append(torch_private.in_backward_pass()))
    assert not torch_private.in_backward_pass()
    y.backward()
    assert seen == [True]


def test_a_transform_is_seen():
    seen = []
    run = lambda x: (seen.append((torch_private.in_functional_transform(), torch_private.in_transform())), x)[1]  # noqa: E731
    run(torch.ones(1))
    torch.vmap(run)(torch.ones(1))
    with torch.autograd.forward_ad.dual_level():
        run(torch.ones(1))
    assert seen == [(False, False), (True, True), (False, True)]


@pytest.mark.parametrize("reentrant", [True, False], ids=["reentrant", "non-reentrant"])
def test_checkpoints_are_found_innermost_first(reentrant):
    seen = []

    def inner(x: Tensor) -> Tensor:
        seen.append([*torch_private.checkpoints()])
        return x.exp()

    def outer(x: Tensor) -> Tensor:
        return checkpoint(inner, x.exp(), use_reentrant=reentrant)

    y = checkpoint(outer, torch.ones(1, requires_grad=True), use_reentrant=reentrant)
    assert not [*torch_private.checkpoints()]
    y.backward()
    first, *repeats = seen
    assert [repeated for _, repeated in first] == [False, False] and repeats
    begun = {id(checkpoint) for checkpoint, _ in first}
    for found in repeats:
        own = next(i for i, (_, repeated) in enumerate(found) if repeated)
        assert id(found[own][0]) in begun, "an object that began earlier"
        begun |= {id(checkpoint) for checkpoint, _ in found[:own]}
    # The outer one is repeated as a whole, and begins the inner one again, or only up to what the inner one needs.
    assert [repeated for _, repeated in repeats[0]][:2] == ([False, True] if reentrant else [True])


def test_a_function_is_called_at_the_end_of_the_backward_pass():
    seen, x = [], torch.ones(1, requires_grad=True)
    x.register_hook(lambda grad: seen.append("leaf"))
    y = x * 2
    y.register_hook(lambda grad: torch_private.after_backward(lambda: seen.append("end")))
    y.backward()
    assert seen == ["leaf", "end"]


def test_a_saved_weight_can_be_replaced():
    x, weight = torch.ones(1, 1, 4, requires_grad=True), torch.ones(1, 1, 2, requires_grad=True)
    y = torch.conv1d(x, weight)
    torch_private.replace_saved_weight(y.grad_fn, lambda _: torch.full((1, 1, 2), 3.0))
    y.sum().backward()
    assert x.grad.flatten().tolist() == [3, 6, 6, 3]
    assert weight.grad.flatten().tolist() == [3, 3]


def test_a_change_in_place_is_counted():
    tensor = torch.zeros(1)
    before = torch_private.version(tensor)
    tensor.add_(1)
    assert torch_private.version(tensor) == before + 1


@pytest.mark.parametrize("name", [torch_private.EACH, "_gone"])
def test_a_number_is_added_to_each_tensor(name, monkeypatch):
    monkeypatch.setattr(torch_private, "EACH", name)
    tensors = [torch.zeros((), dtype=torch.int64), torch.ones(2)]
    torch_private.add_to_each(tensors, 3)
    torch_private.add_to_each([], 3)
    assert [tensor.tolist() for tensor in tensors] == [3, [4, 4]]


# Without a name


def forget(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # Attributes of the compiled types cannot be taken away, and torch itself needs some: there the library looks for
    # another name.
    constants = {
        "_raw_saved_weight": "SAVED_WEIGHT",
        "_version": "VERSION",
        "_are_functorch_transforms_active": "TRANSFORMS",
        "_current_level": "LEVEL",
    }
    if name in constants:
        monkeypatch.setattr(torch_private, constants[name], "_gone")
    else:
        monkeypatch.delattr(NAMES[name], name)


def results() -> tuple[list[Tensor], str]:
    """Outputs, gradients and updates of layers; and the node of the convolution."""
    torch.manual_seed(0)
    conv, linear = Conv2d(4, 5, 3, padding=1, rule="brsf"), Linear(5, 3, rule="usf")
    x = torch.randn(2, 4, 6, 6, requires_grad=True)
    y = conv(x)
    out = linear(y.mean((2, 3)))
    out.square().sum().backward()
    weight = torch.randn(3, 4)
    delta = hebbian_update(weight, x.detach().mean((2, 3)), x.detach().mean((2, 3)) @ weight.t(), rate=0.1)
    made = [y, out, x.grad, conv.weight.grad, linear.weight.grad, conv.feedback_stream, weight, delta]
    return made, type(y.grad_fn).__name__


#: Names without which convolutions run as before.
OTHERS = {"_current_graph_task_id", "_CheckpointFrame", "queue_callback", "_get_backend", "_foreach_add_"}


@pytest.mark.parametrize("name", [name for name in NAMES if name not in OTHERS])
def test_without_the_name_results_are_the_same(name, monkeypatch):
    expected, node = results()
    assert node == "ConvolutionBackward0"
    forget(name, monkeypatch)
    actual, node = results()
    assert node != "ConvolutionBackward0"
    for ours, theirs in zip(actual, expected, strict=True):
        assert torch.equal(ours, theirs)


def test_without_the_name_every_place_may_be_a_backward_pass(monkeypatch):
    forget("_current_graph_task_id", monkeypatch)
    assert torch_private.in_backward_pass()


def test_without_the_name_re_entrant_checkpoints_are_found(monkeypatch):
    forget("_CheckpointFrame", monkeypatch)
    seen = []
    x = torch.ones(1, requires_grad=True)
    checkpoint(lambda v: [seen.extend(torch_private.checkpoints()), v * 2][1], x, use_reentrant=True).backward()
    assert [repeated for _, repeated in seen] == [False, True]


def test_without_the_mark_the_compilers_own_function_sets_it(monkeypatch):
    def function() -> str:
        return "as before"

    monkeypatch.setattr(torch_private, "CONSTANT", "")
    assert torch_private.constant(function)() == "as before"
    assert vars(function), "marked, whatever the mark"


def test_collectives_are_aborted_where_torch_can():
    class Backend:
        aborted = 0

        def abort(self) -> None:
            self.aborted += 1

    class Group:
        backend = Backend()

        def _get_backend(self, device: torch.device) -> Backend:
            assert device.type == "cuda"
            return self.backend

    torch_private.abort_collectives(Group())
    assert Group.backend.aborted == 1
    torch_private.abort_collectives(object())  # of a torch without the name
