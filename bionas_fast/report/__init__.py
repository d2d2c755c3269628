"""Reports: a genotype in the terminal and as a picture; a search, a training and repeated runs as HTML pages."""

from typing import TYPE_CHECKING

from bionas_fast.imports import on_first_use

if TYPE_CHECKING:
    from bionas_fast.report.comparison import Compared, collect, write_comparison
    from bionas_fast.report.figure import draw_figure
    from bionas_fast.report.robustness import AttackTable
    from bionas_fast.report.run_page import write_report
    from bionas_fast.report.text import draw_genotype
else:
    __getattr__, __dir__ = on_first_use(
        __name__,
        {
            "comparison": "Compared collect write_comparison",
            "figure": "draw_figure",
            "robustness": "AttackTable",
            "run_page": "write_report",
            "text": "draw_genotype",
        },
    )

__all__ = [
    "AttackTable",
    "Compared",
    "collect",
    "draw_figure",
    "draw_genotype",
    "write_comparison",
    "write_report",
]
