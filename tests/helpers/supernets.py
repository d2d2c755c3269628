"""Pairs of supernets, one of each engine, and their gradients."""

from __future__ import annotations

import copy
import dataclasses

import torch

import bionas_fast as bf
from bionas_fast.space import get_space


def with_nodes(space, nodes):
    """A space whose cells have fewer nodes than the published four: 2 nodes have 5 edges, 4 have 14."""
    return dataclasses.replace(get_space(space) if isinstance(space, str) else space, nodes=nodes)


def pair(dtype=torch.float32, *, space="bionas", nodes=4, **shape):
    """Build a supernet in both engines."""
    space = with_nodes(space, nodes) if nodes != 4 else space
    shape = {"channels": 3, "cells": 3, "in_channels": 2, "seed": 3, "space": space, **shape}
    return tuple(bf.build_supernet(engine=engine, **shape).to(dtype) for engine in ("modular", "stacked"))


def relative(actual, expected):
    """The largest error over the largest entry."""
    return ((actual - expected).abs().max() / expected.abs().max().clamp_min(1e-30)).item()


def reached(net):
    """The parameters that a gradient reached: a network of few cells has no use for one of the two alphas."""
    return [p for p in net.parameters() if p.grad is not None]


def gradients(stacked):
    """The stacked network's gradients under the modular names."""
    holder = copy.deepcopy(stacked)
    with torch.no_grad():
        for p, q in zip(holder.parameters(), stacked.parameters(), strict=True):
            p.copy_(torch.zeros_like(q) if q.grad is None else q.grad)
    return dict(holder.to_modular().named_parameters())


def forget_graphs() -> None:
    """Have ``torch.compile`` begin anew: torch 2.11 does not see that parameters were frozen after it compiled."""
    if torch.__version__.startswith("2.11."):
        torch._dynamo.reset()
