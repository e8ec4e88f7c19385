"""Consent to licences that ask for it, remembered per licence; and one warning where upstream states none.

    <cache>/consent/<licence>.json     given once, by load(..., accept_licence=True) or --accept-licence

`SVD_HUB_ACCEPT_LICENCE="ID,ID"` gives it for the processes of a machine without writing anything. A file of the user's
own (`weights=FILE`) passes no gate: what it is under is between the user and whoever it came from.
"""

from __future__ import annotations

import datetime
import hashlib
import json
import os
import re
import warnings
from pathlib import Path

from . import store
from .catalog import NOT_STATED, Entry, all_licences
from .errors import LicenceError, OptionError, nearest
from .files import write_atomic

VARIABLE = "SVD_HUB_ACCEPT_LICENCE"


class LicenceWarning(UserWarning):
    """Upstream states no licence (told once per entry and process), or a consent could not be remembered."""


_told: set[str] = set()


def check(entry: Entry, *, accepted: bool, stacklevel: int = 1) -> None:
    """Let the weights of `entry` be fetched and used, or say what its licence asks for.

    Args:
        entry: what is about to be fetched or loaded.
        accepted: the user agrees, here and now, which is remembered for every entry under this licence. Where nothing
            can be written it holds for this call, with a warning.
        stacklevel: where that warning points to, 1 = the caller of this.

    Raises:
        LicenceError: consent is asked for and was never given.
        OptionError: SVD_HUB_ACCEPT_LICENCE names a licence that is none of the catalogue's.
    """
    if not entry.consent or is_given(entry.licence):
        return
    if not accepted:
        raise LicenceError(_refusal(entry))
    try:
        _remember(entry)
    except OSError as error:
        warnings.warn(
            f"consent to {entry.licence} holds for this call alone: {_path(entry.licence)} cannot be written "
            f"({error.strerror or type(error).__name__}). Next: set {VARIABLE}={entry.licence} to give it for good",
            LicenceWarning,
            stacklevel=stacklevel + 1,
        )


def warn_unstated(entry: Entry, *, stacklevel: int) -> None:
    """Warn once per entry and process where upstream states no licence; `stacklevel` 1 = the caller of this."""
    if entry.licence == NOT_STATED and entry.status != "ours" and entry.name not in _told:
        _told.add(entry.name)
        warnings.warn(
            f"{entry.name!r}: upstream states no licence for these weights; ask its authors before you redistribute "
            f"them or build a product on them ({entry.link or entry.paper})",
            LicenceWarning,
            stacklevel=stacklevel + 1,
        )


def is_given(licence: str) -> bool:
    """Return whether consent to a licence was given, by the environment or once before on this machine.

    Raises:
        OptionError: the environment names an unknown licence, or one that asks for no consent.
    """
    asked = [word.strip() for word in os.environ.get(VARIABLE, "").split(",") if word.strip()]
    known = [name for name, terms in all_licences().items() if terms.consent]
    for word in asked:
        if word not in known:
            raise OptionError(
                f"{VARIABLE} names {word!r}, which is no licence that asks for consent; "
                f"nearest: {nearest(word, known)}; allowed: {', '.join(known) or 'none'}"
            )
    return licence in asked or _is_remembered(licence)


def terms_line(entry: Entry) -> str:
    """Return the terms of a licence that asks for consent in one sentence, "" where none is asked."""
    terms = entry.terms
    if terms is None or not terms.consent:
        return ""
    name = f" ({terms.name})" if terms.name != entry.licence else ""
    link = entry.licence_url or entry.link or entry.paper
    forbids = f"; it forbids: {terms.forbids.rstrip('.')}" if terms.forbids else ""
    return f"{entry.licence}{name} asks for your consent{f', {link}' if link else ''}{forbids}"


def _refusal(entry: Entry) -> str:
    return (
        f"{entry.name!r}: {terms_line(entry)}. Next: read it, then load(..., accept_licence=True), or "
        f"svd-hub fetch {entry.name} --accept-licence, or {VARIABLE}={entry.licence}; it is asked once per licence"
    )


def _path(licence: str) -> Path:
    """Return where the consent to a licence is kept; what no file can be called becomes "_", and a hash tells apart."""
    name = re.sub(r"[^A-Za-z0-9.+-]", "_", licence).lstrip(".")
    if name != licence:
        name += "-" + hashlib.sha256(licence.encode()).hexdigest()[:8]
    return store.cache_dir() / "consent" / f"{name}.json"


def _is_remembered(licence: str) -> bool:
    """A record that cannot be read, or of another licence, is no consent: it is asked for, and written, anew."""
    try:
        record = json.loads(_path(licence).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(record, dict) and record.get("licence") == licence


def _remember(entry: Entry) -> None:
    path = _path(entry.licence)
    given = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    record = {"licence": entry.licence, "url": entry.licence_url, "given": given, "first_for": entry.name}
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, json.dumps(record, indent=1).encode())
