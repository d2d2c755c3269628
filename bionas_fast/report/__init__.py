"""Reports: a genotype in the terminal and as a picture; a search, a training and repeated runs as HTML pages."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from bionas_fast.report.text import draw_genotype
from bionas_fast.space import Genotype

if TYPE_CHECKING:
    from bionas_fast.report.comparison import Compared, collect, write_comparison
    from bionas_fast.report.figure import draw_figure
    from bionas_fast.report.robustness import AttackTable
    from bionas_fast.report.run_page import write_report

# Imported on use: matplotlib takes half a second.
_drawing = {
    "AttackTable": "bionas_fast.report.robustness",
    "Compared": "bionas_fast.report.comparison",
    "collect": "bionas_fast.report.comparison",
    "draw_figure": "bionas_fast.report.figure",
    "write_comparison": "bionas_fast.report.comparison",
    "write_report": "bionas_fast.report.run_page",
}


def __getattr__(name: str) -> Any:
    if name not in _drawing:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_drawing[name]), name)


def _drawn(genotype: Genotype) -> str:
    """Draw a genotype for a notebook."""
    from bionas_fast.report.figure import genotype_figure, render

    return render(genotype_figure(genotype), "svg").decode()


Genotype.to_html = staticmethod(_drawn)
