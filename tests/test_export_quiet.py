"""What exporters say that is expected is not shown; everything else is, and logging stays as it was."""

from __future__ import annotations

import logging
import warnings

import pytest

from svd_hub.export.quiet import quiet


def test_expected_warnings_alone_are_left_out() -> None:
    with quiet():
        warnings.warn("`torch.jit.trace` is deprecated", DeprecationWarning, stacklevel=1)
        with pytest.warns(UserWarning, match="something else"):
            warnings.warn("something else", UserWarning, stacklevel=1)


def test_levels_come_back() -> None:
    logger = logging.getLogger("torch.onnx")
    before = logger.level
    with quiet():
        assert logger.level == logging.ERROR
    assert logger.level == before
