"""What the tasks share: the network as the run wants it, its optimiser, and the sums of an epoch that is not over."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Self

import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from .. import ranks
from ..freezing import freeze as frozen_parts
from ..freezing import hold, parts, statistics_of
from ..precision import guard_cpu_bf16
from .optimiser import Optimiser, configure


@dataclass(frozen=True, kw_only=True)
class Network:
    """The network of a run: an architecture with its options, and what it starts from.

    Attributes:
        init: "none", or an entry (or a file that `svd_hub.save` wrote) whose weights it starts from; `options` may
            change what does not belong to these weights. An entry of another architecture takes `num_classes` and
            `in_channels` of them alone; a segmenter's encoder gets a head for the whole image (`starting`).
        form: how a batch reaches it: "pseudo3d" (N,3,H,W -> N,1,3,H,W), "planar" (a 2D twin), "volume" (as it is).
        memory: "channels_last" where it is faster (pre-training on a CPU: 1.13x); a task's network of several parts
            has its backbone so.
    """

    architecture: str = "resnet3d"
    options: dict[str, Any] = field(default_factory=dict)
    init: str = "none"
    form: Literal["pseudo3d", "planar", "volume"] = "pseudo3d"
    memory: Literal["contiguous", "channels_last"] = "contiguous"


class Task(pl.LightningModule):
    """A network in training.

    Args:
        config: of the network.
        network: the network itself.
        optimiser: how it is trained.
        sums: of an epoch's batches, zeros; Lightning's own means would begin again where a run goes on in the middle.
        freeze: parts of the backbone that keep their values, norms in evaluation: "stem", "layer1" to "layer4".
        norm_eval: batch norms of the backbone keep their statistics; group norms have none.
    """

    def __init__(
        self,
        *,
        config: Network,
        network: nn.Module,
        optimiser: Optimiser,
        sums: Tensor,
        freeze: Sequence[str] = (),
        norm_eval: bool = False,
    ) -> None:
        super().__init__()
        self.config, self.optimiser, self.sums = config, optimiser, sums
        self.freeze_parts, self.norm_eval = tuple(freeze), norm_eval
        self.network = guard_cpu_bf16(network)
        if config.memory == "channels_last":
            layout = torch.channels_last if config.form == "planar" else torch.channels_last_3d
            self.backbone.to(memory_format=layout)  # type: ignore[call-overload]
        frozen_parts(self.backbone, self.freeze_parts)
        hold(self.held)

    @property
    def backbone(self) -> nn.Module:
        """The network's pre-trained part; all of it where it has no part of that name."""
        found = getattr(self.network, "backbone", self.network)
        return found if isinstance(found, nn.Module) else self.network

    @property
    def held(self) -> list[nn.Module]:
        """The modules that stay in evaluation; asked for anew, because synchronised norms are other modules."""
        known = parts(self.backbone) if self.freeze_parts else {}
        frozen = [module for name in self.freeze_parts for module in known[name]]
        return [*frozen, *(statistics_of(self.backbone) if self.norm_eval else [])]

    def train(self, mode: bool = True) -> Self:
        """Set the mode, but for what is held in evaluation."""
        super().train(mode)
        hold(self.held)
        return self

    def configure_model(self) -> None:
        """Share the network out, where the run asks for that."""
        ranks.shard(self, self.network)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the sums of an epoch that is not over, each process's own."""
        mine = self.sums.to(self.device, torch.float64)  # on the device, which is where processes can talk
        checkpoint["sums"] = ranks.shares(self, mine).tolist()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Go on with them."""
        kept = checkpoint["sums"]
        mine = kept[self.global_rank] if isinstance(kept[0], list) else kept  # flat: before several processes were
        self.sums = self.sums.new_tensor(mine)

    def configure_optimizers(self) -> Any:
        """Return the optimiser with its per-step schedule."""
        return configure(self.network, self.optimiser, self.trainer)
