"""From a volume of features to a map: one slice of it, or the paper's group transform module (SVD-Net, III-C)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import OptionError


def centre_slice(x: Tensor) -> Tensor:
    """Return slice D // 2 of x (N, C, D, H, W): (N, C, H, W), a view.

    Raises:
        OptionError: x has not five axes.
    """
    if x.ndim != 5:
        raise OptionError(f"features of shape {tuple(x.shape)} are not allowed; allowed: (N, C, D, H, W)")
    return x[:, :, x.shape[2] // 2]


class GroupTransform(nn.Conv2d):
    """The group transform module (GTM): (N, C, D, H, W) -> (N, C, H, W), a learned sum over the depth of each channel.

    A 1x1 convolution without bias in C groups: group c sees the D slices of channel c. It starts as `centre_slice`.
    The only key is `weight`, (C, D, 1, 1), so weights of one depth fit no other. Upstream (urmagicsmine/MP3D@08e5ace,
    modified_p3d.py) names it `backbone.groupconv_{i}.weight`, i = 1..4 for layer1..layer4.

    Raises:
        OptionError: fewer than one channel or slice; in `forward`, a shape other than (N, channels, depth, H, W).
    """

    def __init__(self, channels: int, depth: int) -> None:
        if channels < 1 or depth < 1:
            raise OptionError(f"channels={channels}, depth={depth} are not allowed; allowed: 1 or more of each")
        super().__init__(channels * depth, channels, 1, groups=channels, bias=False)
        self.channels, self.depth = channels, depth

    def reset_parameters(self) -> None:
        """Set the weight to one at the centre slice and zero elsewhere."""
        with torch.no_grad():
            self.weight.zero_()
            self.weight[:, self.weight.shape[1] // 2] = 1

    def forward(self, x: Tensor) -> Tensor:
        """See the class."""
        # a traced size is a tensor, which cannot steer Python
        if not torch.jit.is_tracing() and (x.ndim != 5 or x.shape[1] != self.channels or x.shape[2] != self.depth):
            raise OptionError(
                f"features of shape {list(x.shape)} are not allowed; allowed: (N, {self.channels}, {self.depth}, H, W)"
            )
        x = x.reshape(x.shape[0], self.channels * self.depth, x.shape[3], x.shape[4])
        return F.conv2d(x, self.weight, groups=self.channels)
