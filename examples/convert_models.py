"""Models of torchvision and timm with learning rules: ``python examples/convert_models.py``."""

from __future__ import annotations

import timm
import torch
import torchvision

import bionas_fast as bf

x, labels = torch.randn(4, 3, 32, 32), torch.tensor([0, 1, 2, 3])


def train_step(model: torch.nn.Module) -> float:
    """Take one step of SGD; return the loss."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    loss = torch.nn.functional.cross_entropy(model(x), labels)
    loss.backward()
    optimizer.step()
    return loss.item()


# A function of name and module chooses the rule; None leaves a layer as it is.
resnet = torchvision.models.resnet18(num_classes=10)
resnet = bf.convert(resnet, rule=lambda name, module: "usf" if isinstance(module, torch.nn.Conv2d) else "bp")
print("resnet18  loss", train_step(resnet), bf.rule_shares(resnet))

# A rule for each group of layers; the first pattern that matches counts.
rules = {"stages.0.*.mlp.*": "usf", "stages.1.*.mlp.*": "frsf", "*": "bp"}
convnext = bf.convert(timm.create_model("test_convnext", num_classes=10), rule=rules)
print("convnext  loss", train_step(convnext), bf.rule_shares(convnext))

vit = timm.create_model("test_vit", img_size=32, num_classes=10)
vit = bf.convert(vit, rule={"*.mlp.*": "brsf", "*": "bp"})
print("vit       loss", train_step(vit), bf.rule_shares(vit))

# The angle between feedback and weights in every layer that has one, in degrees.
for name, module in list(resnet.named_modules())[:8]:
    if isinstance(module, bf.nn.FeedbackLayer):
        print(f"{name:<20} {float(module.feedback_angle()):.1f}")
