"""The tables and figures of the paper: the runs behind them, and what these show beside the published figures."""

from bionas_fast.reproduce.costs import Cost, estimate_costs
from bionas_fast.reproduce.experiments import Experiment, Part, experiment_names, get_experiment
from bionas_fast.reproduce.plan import Plan, Scale, Step, scale_names
from bionas_fast.reproduce.runner import Listener, run_steps
