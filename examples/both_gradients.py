"""An attack through the feedback and through the true gradient: ``python examples/both_gradients.py``.

The difference of the two is the blindness of the attacker, which is not robustness; see docs/robustness.md.
"""

from __future__ import annotations

import torch
from torch import nn

import bionas_fast as bf


def train(rule: str, images: torch.Tensor, labels: torch.Tensor) -> nn.Module:
    """Train a small network with one rule on every layer."""
    torch.manual_seed(0)
    layers = nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(256, 10)
    network = bf.convert(nn.Sequential(*layers), rule)
    optimizer = torch.optim.Adam(network.parameters(), lr=0.01)
    for _ in range(40):
        loss = nn.functional.cross_entropy(network(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return network.eval()


def main() -> None:
    data = bf.load_dataset("digits")
    test = data.test_images[:100], data.test_labels[:100]
    for rule in ("bp", "fa"):
        network = train(rule, data.images, data.labels)
        found = bf.attack(network, test, bf.AttackConfig(attacks=("pgd-5", "square-20"), eps=(16 / 255,)))
        through = {gradient: str(found.find("pgd-5", gradient).accuracy) for gradient in ("feedback", "true")}
        print(f"{rule}: clean {found.clean_accuracy}, PGD {through}, blindness {found.blindness('pgd-5', 16 / 255)}")


if __name__ == "__main__":
    main()
