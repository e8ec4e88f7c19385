"""CT and MR volumes, from the files scanners and tools write to arrays of one orientation, and masks back again.

`read` gives a `Volume`: axes (D, H, W) that run to the patient's Superior, Posterior and Left, spacing in mm as
(z, y, x). What the file's own axes were is kept, so that `write_mask` writes on the input's grid. Nothing that is wrong
with a file passes in silence: it is refused, or treated and named in `Volume.notes`.

A large volume does not lie in memory but in a file without a name, and comes in as it is touched: see `memory`.
"""

from __future__ import annotations

from .grid import Grid, Turn
from .reading import files_of, list_series, read, series_of
from .record import Source, Volume
from .resampling import resample, restore
from .series import Series
from .values import LARGEST
from .writing import write_image, write_mask

__all__ = [
    "LARGEST",
    "Grid",
    "Series",
    "Source",
    "Turn",
    "Volume",
    "files_of",
    "list_series",
    "read",
    "resample",
    "restore",
    "series_of",
    "write_image",
    "write_mask",
]
