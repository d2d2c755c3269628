"""Models of torchvision, timm and transformers, tiny and from configurations, converted to every rule and trained."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import bionas_fast as bf
from bionas_fast.errors import BionasWarning
from helpers.learned import MECHANISMS, weights_of
from helpers.tolerances import GRADIENT_FLOAT64, assert_close

CLASSES, VOCABULARY = 5, 50
Make = Callable[[], nn.Module]


def vision(build: Callable[[Any], nn.Module]) -> Make:
    return lambda: build(pytest.importorskip("torchvision.models"))


def timm(build: Callable[[Any], nn.Module]) -> Make:
    return lambda: build(pytest.importorskip("timm"))


def transformer(kind: str, config: str, **sizes: Any) -> Make:
    def build() -> nn.Module:
        library = pytest.importorskip("transformers")
        return getattr(library, kind)(getattr(library, config)(**sizes))

    return build


def efficientnet(models: Any) -> nn.Module:
    module = models.efficientnet
    stages = [(1, 3, 1, 32, 16, 1), (6, 5, 2, 16, 24, 1)]
    sizes = [module.MBConvConfig(*stage, width_mult=0.5, depth_mult=1.0) for stage in stages]
    return module._efficientnet(sizes, 0.2, 32, None, False, num_classes=CLASSES)


def convnext(models: Any) -> nn.Module:
    block = models.convnext.CNBlockConfig
    return models.ConvNeXt([block(8, 16, 1), block(16, None, 1)], num_classes=CLASSES, stochastic_depth_prob=0.2)


IMAGES: dict[str, Make] = {
    "resnet": vision(lambda m: m.ResNet(m.resnet.BasicBlock, [1, 1, 1, 1], num_classes=CLASSES)),
    "efficientnet": vision(efficientnet),
    "squeezenet": vision(lambda m: m.squeezenet1_1(weights=None, num_classes=CLASSES)),
    "mobilenet-v3": vision(lambda m: m.mobilenet_v3_small(weights=None, num_classes=CLASSES, width_mult=0.25)),
    "shufflenet": vision(lambda m: m.ShuffleNetV2([1, 1, 1], [8, 16, 24, 32, 64], num_classes=CLASSES)),
    "densenet": vision(lambda m: m.DenseNet(4, (2, 2), 8, num_classes=CLASSES)),
    "convnext": vision(convnext),
    "googlenet": vision(lambda m: m.googlenet(weights=None, num_classes=CLASSES, aux_logits=True, init_weights=False)),
    "vit": vision(lambda m: m.VisionTransformer(32, 16, 2, 2, 16, 32, num_classes=CLASSES)),
    "timm-mobilenet-v3": timm(lambda m: m.create_model("mobilenetv3_small_050", num_classes=CLASSES)),
    "timm-resnet": timm(
        lambda m: m.models.ResNet(m.models.resnet.Bottleneck, (1,) * 4, channels=(4, 8, 12, 16), num_classes=CLASSES)
    ),
    "timm-vit": timm(
        lambda m: m.models.VisionTransformer(
            img_size=32, patch_size=8, embed_dim=16, depth=2, num_heads=2, num_classes=CLASSES
        )
    ),
    "timm-mixer": timm(
        lambda m: m.models.MlpMixer(img_size=32, patch_size=8, num_blocks=2, embed_dim=16, num_classes=CLASSES)
    ),
    "transformers-vit": transformer(
        "ViTForImageClassification", "ViTConfig", image_size=32, patch_size=8, hidden_size=16, num_hidden_layers=2,
        num_attention_heads=2, intermediate_size=32, num_labels=CLASSES,
    ),
}  # fmt: skip
TEXTS: dict[str, Make] = {
    "bert": transformer(
        "BertForSequenceClassification", "BertConfig", vocab_size=VOCABULARY, hidden_size=16, num_hidden_layers=2,
        num_attention_heads=2, intermediate_size=32, max_position_embeddings=16, num_labels=CLASSES,
    ),
    "gpt2": transformer(
        "GPT2LMHeadModel", "GPT2Config", vocab_size=VOCABULARY, n_embd=16, n_layer=2, n_head=2, n_positions=16,
        bos_token_id=0, eos_token_id=1,
    ),
}  # fmt: skip


def logits_of(output: Any) -> list[Tensor]:
    """The logits of a model, those of auxiliary heads behind."""
    if isinstance(output, Tensor):
        return [output]
    if isinstance(output, tuple) and hasattr(output, "_fields"):
        return [logits for logits in output if logits is not None]
    return [output.logits]


def loss_of(model: nn.Module, x: Tensor) -> Tensor:
    torch.manual_seed(1)  # dropout, stochastic depth
    heads = [logits.flatten(0, -2) for logits in logits_of(model(x))]
    target = torch.arange(len(heads[0])) % CLASSES
    return torch.stack([F.cross_entropy(logits, target) for logits in heads]).sum()


def gradients(model: nn.Module, x: Tensor) -> dict[str, Tensor]:
    model.zero_grad()
    loss_of(model.train(), x).backward()
    return {name: p.grad for name, p in weights_of(model).items() if p.grad is not None}


def check(make: Make, rule: str, x: Tensor, layout: torch.memory_format | None, classes: int) -> None:
    torch.manual_seed(0)
    plain = make()
    for p in plain.parameters():
        if not p.any():  # such as heads that start at zero, whose input gets no error
            nn.init.normal_(p, std=0.1)
    if rule == "bp":
        plain = plain.double()
        x = x.double() if x.is_floating_point() else x
    if layout is not None:
        plain, x = plain.to(memory_format=layout), x.contiguous(memory_format=layout)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", BionasWarning)  # parts that no rule applies to
        model = bf.convert(plain, rule, num_classes=classes)
    twin = copy.deepcopy(plain)
    with torch.no_grad():
        actual, wanted = logits_of(model.eval()(x))[0], logits_of(plain.eval()(x))[0]
    scale = wanted.abs().max()
    assert_close(actual / scale, wanted / scale)

    own, true = gradients(model, x), gradients(twin, x)
    assert own.keys() == true.keys(), "whatever learned learns"
    assert all(torch.isfinite(g).all() for g in own.values())
    assert all(p.grad is not None and p.grad.isfinite().all() for p in bf.nn.learned_feedback(model))
    if rule == "bp":
        largest = max(gradient.abs().max() for gradient in true.values())
        for name, gradient in true.items():
            assert (own[name] - gradient).abs().max() <= GRADIENT_FLOAT64 * largest
    torch.optim.SGD(model.parameters(), lr=1e-3).step()
    with torch.no_grad():
        assert torch.isfinite(logits_of(model.eval()(x))[0]).all()


#: The layout of memory does not depend on how B is computed, but on where it is.
LAYOUTS = [(rule, "contiguous") for rule in MECHANISMS] + [
    (rule, "channels_last") for rule in ("bp", "usf", "dfa", "kp")
]


@pytest.mark.parametrize(("rule", "layout"), LAYOUTS)
@pytest.mark.parametrize("make", IMAGES.values(), ids=IMAGES)
def test_images(make, rule, layout):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 3, 32, 32, generator=generator)
    check(make, rule, x, torch.channels_last if layout == "channels_last" else None, CLASSES)


@pytest.mark.parametrize("rule", MECHANISMS)
@pytest.mark.parametrize(("make", "classes"), [(TEXTS["bert"], CLASSES), (TEXTS["gpt2"], VOCABULARY)], ids=TEXTS)
def test_texts(make, classes, rule):
    generator = torch.Generator().manual_seed(0)
    check(make, rule, torch.randint(VOCABULARY, (2, 8), generator=generator), None, classes)
