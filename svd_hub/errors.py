"""Every error a user of the hub can meet. Each message says: asked, found, allowed, and the next step."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Any


class SvdHubError(Exception):
    """Base of all errors raised on purpose by svd_hub."""


class UnknownEntryError(SvdHubError, LookupError):
    """A name that is not in the catalogue."""


class OptionError(SvdHubError, ValueError):
    """An argument whose value is not allowed."""


class WeightsUnavailableError(SvdHubError):
    """The entry exists, its weights do not (status `recipe` or `unavailable`)."""


class IntegrityError(SvdHubError):
    """Bytes that are not the bytes the catalogue or the ledger promises."""


class DownloadError(SvdHubError, OSError):
    """A file could not be brought to this machine."""


class CheckpointError(SvdHubError, ValueError):
    """A file that is not a usable checkpoint of the network asked for; `upstream`: what it held, where it was read."""

    upstream: Mapping[str, Any] = MappingProxyType({})


class LicenceError(SvdHubError, PermissionError):
    """Weights under a licence that needs consent which was not given."""


class VolumeError(SvdHubError, ValueError):
    """Image data that the preprocessing cannot treat."""


class MissingExtraError(SvdHubError, ImportError):
    """An optional library is not installed."""

    def __init__(self, library: str, extra: str) -> None:
        super().__init__(f'{library} is not installed. Next: pip install "svd-hub[{extra}]"')
        self.library, self.extra = library, extra


def nearest(name: str, allowed: Iterable[str], count: int = 3) -> str:
    """Return a readable list of the `count` allowed names closest to `name` ("none" if there are none)."""
    close = difflib.get_close_matches(name, list(allowed), n=count, cutoff=0.5)
    return ", ".join(close) if close else "none"


def check_choice(option: str, value: object, allowed: Iterable[object]) -> None:
    """Raise `OptionError` unless `value` is one of `allowed`."""
    choices = tuple(allowed)
    if value not in choices:
        raise OptionError(f"{option}={value!r} is not allowed; allowed: {', '.join(map(repr, choices))}")
