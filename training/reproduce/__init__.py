"""The paper's tables beside what this project counts and trains: `svd-hub reproduce table2`.

`paper.toml` is what the paper prints, with what does not fit together in it; `paper` reads it, `runs` reads finished
runs, `counts` counts networks, `comparison` puts them side by side and `show` makes tables for a terminal of it.
"""

from .comparison import Cell, Comparison, Line, compare
from .paper import PaperTable, read_paper
from .runs import Run, read_runs
from .show import render

__all__ = ["Cell", "Comparison", "Line", "PaperTable", "Run", "compare", "read_paper", "read_runs", "render"]
