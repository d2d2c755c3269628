"""The course of the learning rate, in closed form: it needs no state and can be resumed at any epoch."""

from __future__ import annotations

from bionas_fast.runs.schedule import cosine
from bionas_fast.training.config import SupervisedConfig


def learning_rate(config: SupervisedConfig, epoch: int) -> float:
    """Return the learning rate of an epoch, counted from 0.

    With peak η (``learning_rate``), minimum m, E epochs and e the epoch:

    - cosine: m + (η - m)(1 + cos(π e / E)) / 2 (Loshchilov and Hutter 2017);
    - linear: m + (η - m)(E - e) / E; with a tail of T epochs, η (E - T - e) / (E - T) before them and
      η (E - e) / ((E - T) T) in them (the code of PC-DARTS, Xu et al. 2020);
    - multistep, step: η times a factor for every fall up to e.

    In the first W epochs of a warm-up, this is multiplied by (e + 1) / W.
    """
    rate = _scheduled(config, epoch)
    return rate * (epoch + 1) / config.warmup_epochs if epoch < config.warmup_epochs else rate


def _scheduled(config: SupervisedConfig, epoch: int) -> float:
    peak, epochs = config.learning_rate, config.epochs
    match config.schedule:
        case "cosine":
            return cosine(epoch, epochs, peak, config.learning_rate_min)
        case "linear" if config.linear_tail:
            tail = config.linear_tail
            before = epochs - tail
            if epoch < before:
                return peak * (before - epoch) / before
            return peak * (epochs - epoch) / (before * tail)
        case "linear":
            return config.learning_rate_min + (peak - config.learning_rate_min) * (epochs - epoch) / epochs
        case "multistep":
            return peak * config.schedule_factor ** sum(epoch >= fall for fall in config.schedule_epochs)
        case "step":
            return peak * config.schedule_factor ** (epoch // config.schedule_epochs[0])
    return peak
