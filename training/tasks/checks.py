"""What every task looks at in a step."""

from __future__ import annotations

import pytorch_lightning as pl
import torch
from torch import Tensor

from ...errors import SvdHubError


def check_finite(loss: Tensor, task: pl.LightningModule, batch_idx: int) -> None:
    """Stop a run whose loss is not finite, with the batch named.

    Raises:
        SvdHubError: it is not.
    """
    if not torch.isfinite(loss):
        raise SvdHubError(
            f"loss is {loss.item()} at step {task.global_step} (epoch {task.current_epoch}, batch {batch_idx}): "
            "the run is stopped, its last checkpoint is from before. "
            "Next: a lower task.init_args.optimiser.lr, or run.precision=32-true"
        )
