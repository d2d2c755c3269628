"""A learning rule of your own, in a layer, a model and a search: ``python examples/custom_rule.py``.

The file is also a plugin of the command line: ``bionas-fast search --plugin custom_rule.py --rules usf,ternary``.
"""

from __future__ import annotations

import tempfile

import torch

import bionas_fast as bf


@bf.rules.register
class Ternary(bf.rules.Rule):
    """Sign of the larger half of the weights, zero elsewhere."""

    name = "ternary"

    def feedback(self, weight, state):
        large = weight.abs() > weight.abs().median()
        return state.law.scale * weight.sign() * large


def main() -> None:
    layer = bf.nn.Linear(32, 10, rule="ternary")
    zeros = (layer.feedback_weight() == 0).float().mean()
    print(f"zeros in B {zeros:.2f}, angle between B and W {float(layer.feedback_angle()):.1f} degrees")

    hidden = bf.nn.Linear(64, 32, rule="ternary")
    model = torch.nn.Sequential(torch.nn.Flatten(), hidden, torch.nn.ReLU(), layer)
    data = bf.load_dataset("digits")
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    images, labels = data.images, data.labels
    for _ in range(60):
        loss = torch.nn.functional.cross_entropy(model(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    accuracy = (model(data.test_images).argmax(1) == data.test_labels).float().mean()
    print(f"test accuracy {100 * accuracy:.1f} %")

    with tempfile.TemporaryDirectory() as folder:
        settings = bf.SearchConfig(
            rules=("usf", "ternary"), operations=("dil_conv_3x3",), channels=1, cells=3, epochs=1
        )
        result = bf.search(settings, out=f"{folder}/run")
    print(result.genotype)


if __name__ == "__main__":
    main()
