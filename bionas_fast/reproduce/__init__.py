"""The tables and figures of the paper: the runs behind them, and what these show beside the published figures."""

from typing import TYPE_CHECKING

from bionas_fast.imports import on_first_use

if TYPE_CHECKING:
    from bionas_fast.reproduce.costs import Cost, estimate_costs
    from bionas_fast.reproduce.experiments import Experiment, Part, experiment_names, get_experiment
    from bionas_fast.reproduce.plan import Plan, Scale, Step, scale_names
    from bionas_fast.reproduce.runner import Listener, run_steps
else:
    __getattr__, __dir__ = on_first_use(
        __name__,
        {
            "costs": "Cost estimate_costs",
            "experiments": "Experiment Part experiment_names get_experiment",
            "plan": "Plan Scale Step scale_names",
            "runner": "Listener run_steps",
        },
    )

__all__ = [
    "Cost",
    "Experiment",
    "Listener",
    "Part",
    "Plan",
    "Scale",
    "Step",
    "estimate_costs",
    "experiment_names",
    "get_experiment",
    "run_steps",
    "scale_names",
]
