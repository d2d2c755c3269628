"""Block-local losses: every block of a network learns by a loss of its own, and no error passes between blocks.

Nøkland & Eidnes 2019, "Training neural networks with local error signals".
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bionas_fast import rules
from bionas_fast.choices import LocalLoss
from bionas_fast.errors import InputError, expect_type, unknown
from bionas_fast.models.genotype_network import GenotypeNetwork
from bionas_fast.nn import FeedbackLayer
from bionas_fast.runtime.isolation import seeded

#: The largest number of features that a head reads; larger maps are averaged over their positions.
FEATURES = 2048


def similarity(x: Tensor) -> Tensor:
    """Compute the cosine similarity of the rows of ``x``, each centred: S [N, N] of [N, ...], symmetric.

    The diagonal is 1, but 0 for a row of equal entries. Half precision is computed in float32.
    """
    rows = x.flatten(1)
    rows = rows if rows.dtype == torch.float64 else rows.float()
    with torch.autocast(rows.device.type, enabled=False):
        rows = F.normalize(rows - rows.mean(dim=1, keepdim=True), dim=1)
        return rows @ rows.t()


def similarity_loss(features: Tensor, targets: Tensor, num_classes: int) -> Tensor:
    """Compute ‖S(h) - S(Y)‖²_F / N², a scalar.

    Args:
        features: h, [N, ...].
        targets: classes, int64 [N], or probabilities [N, num_classes].
        num_classes: the number of classes.
    """
    if not targets.is_floating_point():
        targets = F.one_hot(targets, num_classes)
    return F.mse_loss(similarity(features), similarity(targets.to(features.dtype)))


class Head(nn.Module):
    """A linear classifier of the features of a block, [N, ...] → [N, num_classes].

    Its size follows from the first features.

    Maps [N, C, H, W] are averaged over parts of equal size, as many as leave at most :data:`FEATURES` features.
    """

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.linear = nn.LazyLinear(num_classes)

    def forward(self, features: Tensor) -> Tensor:
        if features.dim() == 4:
            _, channels, height, width = features.shape
            side = max(1, math.isqrt(FEATURES // channels))
            features = F.adaptive_avg_pool2d(features, (min(side, height), min(side, width)))
        return self.linear(features.flatten(1))


class LocalLosses(nn.Module):
    """A model with the local losses of its blocks; see :func:`local_losses`.

    Attributes:
        model: the model.
        blocks: the names of the modules at whose outputs blocks end. The rest of the model, which computes the logits,
            learns by their cross-entropy alone.
        heads: the classifier of each block; none with ``sim``.
    """

    def __init__(self, model: nn.Module, blocks: Sequence[str], *, num_classes: int, similarity_weight: float) -> None:
        super().__init__()
        self.model = model
        self.blocks = tuple(blocks)
        self.num_classes, self.similarity_weight = num_classes, similarity_weight
        heads = [Head(num_classes) for _ in self.blocks] if similarity_weight < 1 else []
        reference = next(model.parameters())
        self.heads = nn.ModuleList(heads).to(reference.device, reference.dtype)

    @contextmanager
    def _cut(self, features: list[Tensor]) -> Iterator[None]:
        """Detach the outputs of the blocks inside of the context, and collect them."""

        def cut(module: nn.Module, args: Any, output: Any) -> Any:
            # An output of several tensors is that of a stem; the last one is the deepest.
            features.append(output if isinstance(output, Tensor) else output[-1])
            return output.detach() if isinstance(output, Tensor) else type(output)(own.detach() for own in output)

        with ExitStack() as hooks:
            for name in self.blocks:
                hooks.callback(self.model.get_submodule(name).register_forward_hook(cut).remove)
            yield

    def outputs(self, *args: Any) -> tuple[Tensor, ...]:
        """Run the model on ``args``; return its logits, [N, classes], and the features of each block, [N, ...]."""
        features: list[Tensor] = []
        with self._cut(features):
            logits = self.model(*args)
        if len(features) != len(self.blocks):
            raise InputError(f"blocks: expected {len(self.blocks)} to run once each, got {len(features)} outputs")
        return logits, *features

    def losses(self, features: Sequence[Tensor], targets: Tensor, label_smoothing: float = 0.0) -> tuple[Tensor, ...]:
        """Compute the loss of each block, a scalar each.

        Args:
            features: the features of each block, see :meth:`outputs`.
            targets: classes, int64 [N], or probabilities [N, num_classes].
            label_smoothing: of the cross-entropy.
        """
        weight, found = self.similarity_weight, []
        for index, own in enumerate(features):
            terms = []
            if weight < 1:
                entropy = F.cross_entropy(self.heads[index](own), targets, label_smoothing=label_smoothing)
                terms.append((1 - weight) * entropy)
            if weight > 0:
                terms.append(weight * similarity_loss(own, targets, self.num_classes))
            found.append(sum(terms[1:], terms[0]))
        return tuple(found)

    def forward(self, x: Tensor, targets: Tensor) -> Tensor:
        """Compute the sum of the losses of all blocks and of the cross-entropy of the logits, a scalar."""
        logits, *features = self.outputs(x)
        return sum(self.losses(features, targets), F.cross_entropy(logits, targets))


def local_losses(
    model: nn.Module,
    *,
    kind: LocalLoss = "predsim",
    beta: float = 0.99,
    blocks: Sequence[str] | None = None,
    num_classes: int | None = None,
    example: Tensor | None = None,
    seed: int = 0,
) -> LocalLosses:
    """Give every block of a model a loss of its own. The inputs of a block are detached.

    A block with output h has the loss L = (1 - β) CE(head(h), Y) + β ‖S(h) - S(Y)‖²_F / N² for the targets Y. S is the
    cosine similarity of the centred features of all pairs of samples (Nøkland & Eidnes 2019). ``pred`` is its first
    term with β = 0, ``sim`` its second with β = 1. The head, a linear layer, learns with its block. Inside a block the
    error is that of the learning rules of its layers. The layers after the last block learn by the cross-entropy of the
    logits.

    Blocks of a genotype network are its stem and its cells; those of a Sequential begin with each child that has
    weight matrices, such as a layer with the normalisation and activation after it.

    Args:
        model: returns logits [N, classes]; it is part of the result and is not changed.
        kind: ``predsim``, ``pred`` or ``sim``.
        beta: β, of ``predsim``.
        blocks: the names of the modules at whose outputs blocks end, in the order in which they run; required for other
            models.
        num_classes: the number of classes; by default the outputs of the model's last linear layer.
        example: an input of the model, such as one image [1, C, H, W], which shows the sizes of the heads. Without it,
            the first pass creates their weights; build the optimiser after that.
        seed: with ``example``, the seed of the heads; the state of PyTorch's generator is restored.

    Returns:
        A module that computes the sum of all losses from inputs and targets; its parameters are those of the model and
        of the heads.

    Raises:
        InputError: an unknown kind, β outside 0 to 1, no blocks or unknown ones, an unknown number of classes, a layer
            that receives the error at the logits (``dfa`` and its variants), an auxiliary head.
    """
    expect_type("model", model, nn.Module)
    if kind not in get_args(LocalLoss):
        raise unknown("kind", kind, get_args(LocalLoss))
    if not 0 <= beta <= 1:
        raise InputError(f"beta: expected 0 <= beta <= 1, got {beta}")
    names = find_blocks(model) if blocks is None else _known(model, blocks)
    for name, layer in model.named_modules():
        if isinstance(layer, FeedbackLayer) and rules.get(layer.rule).mode == "direct":
            raise InputError(
                f"local losses: expected rules that pass the error from layer to layer, got {layer.rule!r} ({name})"
            )
    if num_classes is None:
        num_classes = _count_classes(model)
    weight = {"pred": 0.0, "sim": 1.0, "predsim": beta}[kind]
    local = LocalLosses(model, names, num_classes=num_classes, similarity_weight=weight)
    if example is not None:
        training = {module: module.training for module in model.modules()}
        model.eval()
        try:
            with torch.no_grad(), seeded(seed):
                _, *features = local.outputs(example)
                for head, own in zip(local.heads, features, strict=False):
                    head(own)
        finally:
            for module, mode in training.items():
                module.training = mode
    return local


def find_blocks(model: nn.Module) -> tuple[str, ...]:
    """Return the names of the modules at whose outputs the blocks of a genotype network or a Sequential end.

    Raises:
        InputError: another model, an auxiliary head, fewer than two children with weight matrices, a module that runs
            twice.
    """
    if isinstance(model, GenotypeNetwork):
        if model.auxiliary is not None:
            raise InputError("local losses: expected a network without an auxiliary head, whose error they detach")
        return ("stem", *(f"cells.{index}" for index in range(len(model.cells))))
    if not isinstance(model, nn.Sequential):
        raise InputError(
            f"blocks: {type(model).__name__} is no Sequential; name the modules at whose outputs blocks end, such as "
            "['layer1', 'layer2']"
        )
    names = [*model._modules]
    begins = [index for index, child in enumerate(model) if any(p.dim() > 1 for p in child.parameters())]
    if len(begins) < 2:
        raise InputError(f"blocks: expected at least two children with weights, got {len(begins)}")
    ends = [names[index - 1] for index in begins[1:]]
    for name in ends:
        if sum(child is model._modules[name] for child in model) > 1:
            raise InputError(f"blocks: the module {name!r} runs at several places; use one module at each")
    return tuple(ends)


def _known(model: nn.Module, blocks: Sequence[str]) -> tuple[str, ...]:
    if isinstance(blocks, str) or not blocks:
        raise InputError(f"blocks: expected a list of names, got {blocks!r}")
    known = dict(model.named_modules())
    for name in blocks:
        if name not in known or not name:
            raise unknown("block", name, [own for own in known if own], "blocks")
    return tuple(blocks)


def _count_classes(model: nn.Module) -> int:
    linear = [module for module in model.modules() if isinstance(module, nn.Linear)]
    if not linear:
        raise InputError("num_classes: the model has no linear layer to read it from")
    return linear[-1].out_features
