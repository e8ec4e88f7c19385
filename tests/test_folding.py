"""Folded networks compute the same, in double precision to twelve digits; and only what may be folded is."""

from __future__ import annotations

import copy

import pytest
import torch
from helpers_networks import KINDS, error, network, sides, tensors
from torch import Tensor, nn

from svd_hub.folding import fold, foldable
from svd_hub.models.acs import ACSConv
from svd_hub.models.unet3d_genesis import BatchStatistics3d
from svd_hub.sizes import run

# Every BatchNorm goes but those behind a sum, a concatenation or a norm's own statistics.
LEFT = {"densenet3d": 62, "genesis_batch": 14, "segresencoder": 3, "segresnet_ds": 5}


def norms(model: nn.Module) -> int:
    return sum(isinstance(module, nn.BatchNorm3d) for module in model.modules())


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_function(kind: str) -> None:
    model = network(kind).double()
    state = copy.deepcopy(model.state_dict())
    x = torch.randn(2, 1, *sides(kind), dtype=torch.float64)
    folded = fold(model)
    with torch.no_grad():
        assert error(run(folded, x), run(model, x)) < 1e-12
    assert norms(folded) == LEFT.get(kind, 0)
    assert not any(isinstance(module, ACSConv) for module in folded.modules())
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())
    assert not {t.data_ptr() for t in folded.parameters()} & {t.data_ptr() for t in model.parameters()}


def test_a_norm_that_uses_its_input_stays() -> None:
    assert sum(isinstance(module, BatchStatistics3d) for module in fold(network("genesis_batch")).modules()) == 14


class Reads(nn.Module):
    """A convolution whose output a norm reads, and by `how` something else too."""

    in_channels = 1

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how
        self.conv, self.norm = nn.Conv3d(1, 2, 1), nn.BatchNorm3d(2, affine=how != "plain")
        self.norm.running_mean.normal_()  # type: ignore[union-attr]
        self.norm.running_var.uniform_(0.5, 2)  # type: ignore[union-attr]

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        y = self.conv(x)
        if self.how == "shape":
            x = x[: y.shape[0]]
        z = self.norm(y)
        if self.how == "conv twice":
            z = z + self.conv(x)
        if self.how == "norm twice":
            z = z + self.norm(x.expand(-1, 2, -1, -1, -1))
        if self.how == "sum":
            z = z + y
        return (z, y) if self.how == "returned" else z


@pytest.mark.parametrize("how", ["plain", "shape", "conv twice", "norm twice", "sum", "returned"])
def test_only_where_the_norm_alone_reads_it(how: str) -> None:
    torch.manual_seed(0)
    model = Reads(how).double().eval()
    expected = {"conv": "norm"} if how in ("plain", "shape") else {}
    assert foldable(copy.deepcopy(model).to("meta"), (2, 1, 3, 4, 5)) == expected
    x = torch.randn(2, 1, 3, 4, 5, dtype=torch.float64)
    with torch.no_grad():
        assert error(tensors(fold(model, shape=(2, 1, 3, 4, 5))(x)), tensors(model(x))) < 1e-12
