"""Reports: a genotype in the terminal and as a picture; a search, a training and repeated runs as HTML pages."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from bionas_fast.report.text import draw_genotype

if TYPE_CHECKING:
    from bionas_fast.report.comparison import write_comparison
    from bionas_fast.report.figure import draw_figure
    from bionas_fast.report.html import write_report, write_training_report

# Imported on use: matplotlib takes half a second.
_drawing = {
    "draw_figure": "bionas_fast.report.figure",
    "write_comparison": "bionas_fast.report.comparison",
    "write_report": "bionas_fast.report.html",
    "write_training_report": "bionas_fast.report.html",
}


def __getattr__(name: str) -> Any:
    if name not in _drawing:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_drawing[name]), name)
