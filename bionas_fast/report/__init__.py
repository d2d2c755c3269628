"""What was found, shown: a genotype in the terminal, as a picture, and a whole search as one HTML page."""

from bionas_fast.report.figure import draw_figure
from bionas_fast.report.html import write_report
from bionas_fast.report.terminal import draw_genotype
