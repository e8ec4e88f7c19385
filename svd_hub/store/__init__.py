"""From an entry to one verified local file: what to do, the cache and its ledger. Builds no network, imports no torch.

    <cache>/<sha256 of the upstream file>/<converter version>.safetensors   what the hub made of it, once
    <cache>/<sha256 of the upstream file>/<converter version>.json          the ledger: its own sha256, size, origin
    <cache>/entries/<entry>/<place>.json     the full hash first seen at that place, held to ever after
    <cache>/incoming/[<entry>/]<file>        upstream files that a person puts there by hand
    <cache>/locks, <cache>/tmp               one process at a time, and work that is not finished

Every file appears under its name complete and is never changed in place, so a process that mapped it is safe.

The story, one file each: `cache` (is it here? keep it), `locks` (one process brings it), `fetching` (decide, bring,
check), `housekeeping` (verify, usage, clean); below them `ledger` (what each file must hash to) and `places` (paths).
"""

from .cache import Local as Local
from .cache import cached as cached
from .cache import publish as publish
from .fetching import Action as Action
from .fetching import Fetched as Fetched
from .fetching import decide as decide
from .fetching import examine as examine
from .fetching import fetch as fetch
from .housekeeping import Verified as Verified
from .housekeeping import clean as clean
from .housekeeping import usage as usage
from .housekeeping import verify as verify
from .ledger import VERIFY as VERIFY
from .ledger import expected_sha256 as expected_sha256
from .locks import lock as lock
from .locks import workdir as workdir
from .places import Used as Used
from .places import bundled_path as bundled_path
from .places import cache_dir as cache_dir
from .places import canonical_path as canonical_path
from .places import incoming_path as incoming_path
