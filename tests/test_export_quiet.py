"""What exporters say that is expected is not shown; everything else is, and logging stays as it was."""

from __future__ import annotations

import logging
import subprocess
import sys
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


def test_what_the_quantiser_logs_and_nothing_else() -> None:
    """In a process of its own: pytest has handlers, a user's script has none."""
    code = (
        "import logging\n"
        "from svd_hub.export.quiet import quiet\n"
        "with quiet():\n"
        "    logging.warning('Please consider to run pre-processing before quantization. Refer to x')\n"
        "    logging.warning('of another')\n"
        "    logging.getLogger('a.b').warning('of a library')\n"
        "root = logging.getLogger()\n"
        "assert not root.handlers and not root.filters\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stderr.splitlines()) == (0, ["of another", "of a library"])
