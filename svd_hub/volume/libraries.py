"""The libraries of the extra [volume], brought in when they are needed, and kept quiet while they read."""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Iterator
from typing import Any

from ..errors import MissingExtraError


def simpleitk() -> Any:
    """Return the module SimpleITK.

    Raises:
        MissingExtraError: it is not installed; the message names the command that installs it.
    """
    try:
        import SimpleITK
    except ImportError:
        raise MissingExtraError("SimpleITK", "volume") from None
    return SimpleITK


def pydicom() -> Any:
    """Return the package pydicom, with its reader.

    Raises:
        MissingExtraError: it is not installed; the message names the command that installs it.
    """
    try:
        import pydicom
        import pydicom.filereader
    except ImportError:
        raise MissingExtraError("pydicom", "volume") from None
    return pydicom


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silence pydicom's warnings and log while it reads: they quote values of the header, a patient's name included."""
    log = logging.getLogger("pydicom")
    before = log.disabled
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        log.disabled = True
        try:
            yield
        finally:
            log.disabled = before
