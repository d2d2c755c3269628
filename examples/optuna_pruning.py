"""Trials of a training that Optuna ends early: ``python examples/optuna_pruning.py``.

The validation accuracy of every epoch goes to Optuna; the test images choose nothing.
"""

from __future__ import annotations

import optuna
import torch

import bionas_fast as bf

data = bf.load_dataset("digits")
images, labels = data.images, data.labels  # floating point in [0, 1]
training, held_out = slice(0, 1000), slice(1000, None)


def objective(trial: optuna.Trial) -> float:
    """Train a small network; return its accuracy on the images held out."""
    rule = trial.suggest_categorical("rule", ["bp", "usf", "fa"])
    rate = trial.suggest_float("learning_rate", 1e-4, 1e-1, log=True)
    torch.manual_seed(0)
    layers = torch.nn.Flatten(), torch.nn.Linear(64, 64), torch.nn.ReLU(), torch.nn.Linear(64, 10)
    model = bf.convert(torch.nn.Sequential(*layers), rule)
    optimizer = torch.optim.Adam(model.parameters(), lr=rate)
    accuracy = 0.0
    for epoch in range(5):
        for x, y in zip(images[training].split(100), labels[training].split(100), strict=True):
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(model(x), y).backward()
            optimizer.step()
        accuracy = float((model(images[held_out]).argmax(1) == labels[held_out]).float().mean())
        trial.report(accuracy, epoch)
        if trial.should_prune():
            raise optuna.TrialPruned
    return accuracy


def main() -> None:
    study = optuna.create_study(
        direction="maximize",
        sampler=optuna.samplers.TPESampler(seed=0),
        pruner=optuna.pruners.MedianPruner(n_startup_trials=3),
    )
    study.optimize(objective, n_trials=12)
    pruned = study.get_trials(states=[optuna.trial.TrialState.PRUNED])
    print(
        f"{len(pruned)} of {len(study.trials)} trials ended early; best {study.best_value:.3f} with {study.best_params}"
    )


if __name__ == "__main__":
    main()
