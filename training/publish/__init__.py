"""From a finished run to a release.

`publishing` tells the story, one file each:
`finished` (the run, and what of it may be shown), `code` (its state), `terms` (data and licence), `golden`
(an input, and what the weights make of it), `weights` (the file), `entry` and `toml` (the catalogue's table), `card`,
`release` (a release in the making), `folder` and `hub` (where it goes).
"""

from .golden import check as check
from .publishing import publish_run as publish_run
from .release import File as File
from .release import Release as Release
from .show import as_data as as_data
from .show import lines as lines
from .terms import Told as Told
