"""Filters that learn without labels, then a classifier on top: ``python examples/hebbian_pretraining.py``."""

from __future__ import annotations

import torch
from torch import nn

import bionas_fast as bf

torch.manual_seed(0)
data = bf.load_dataset("digits")
images, labels = data.images, data.labels
test_images, test_labels = data.test_images, data.test_labels

filters = nn.Sequential(
    bf.nn.HebbianConv2d(1, 32, 3, padding=1, rule="softhebb", adaptive=True, rate=0.5),
    bf.nn.Triangle(),
    nn.MaxPool2d(2),
    nn.Flatten(),
)
network = nn.Sequential(filters, nn.LazyLinear(10))

# 1. Without labels: a forward pass in training mode changes the filters.
network.train()
before = filters[0].weight.clone()
with torch.no_grad():
    for _ in range(2):
        for batch in images.split(16):
            filters(batch)
print(f"change of the filters {(filters[0].weight - before).norm() / before.norm():.2f}")

# 2. With labels: the filters are frozen, the head learns by back-propagation.
with bf.nn.frozen_plasticity(network):
    optimizer = None
    for _ in range(40):
        loss = nn.functional.cross_entropy(network(images), labels)
        optimizer = optimizer or torch.optim.Adam(network[1].parameters(), lr=0.02)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
network.eval()
accuracy = (network(test_images).argmax(1) == test_labels).float().mean()
print(f"test accuracy {100 * accuracy:.1f} % with frozen filters")

# 3. Fine-tuning: the filters become an ordinary convolution and learn with the head.
plain = bf.to_torch(network)
optimizer = torch.optim.Adam(plain.parameters(), lr=0.002)
plain.train()
for _ in range(20):
    loss = nn.functional.cross_entropy(plain(images), labels)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
plain.eval()
tuned = (plain(test_images).argmax(1) == test_labels).float().mean()
print(f"test accuracy {100 * tuned:.1f} % after fine-tuning")
