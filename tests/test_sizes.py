"""Which inputs a network takes: what was found by asking is what its architecture's rules say, and what it does."""

from __future__ import annotations

import pytest
import torch
from helpers_networks import KINDS, network
from torch import nn

from svd_hub.errors import OptionError
from svd_hub.sizes import Sizes, run, sizes_of, some_sides

TOGETHER = ("genesis_batch", "mp3d")  # one side may be smaller if another is larger: norms need two values


@pytest.mark.parametrize("kind", KINDS)
def test_found_is_what_the_architecture_says(kind: str) -> None:
    *_, least, step, most = KINDS[kind]
    model = network(kind)
    found = sizes_of(model)
    assert (found.least, found.step, found.most) == (least, step, (most, None, None))
    with torch.no_grad():  # the network itself agrees
        run(model, torch.randn(1, 1, *found.least))
        for axis in range(3):
            smaller = list(found.least)
            smaller[axis] -= max(1, found.step[axis])
            if smaller[axis] > 0 and kind not in TOGETHER:
                with pytest.raises((OptionError, RuntimeError)):
                    run(model, torch.randn(1, 1, *smaller))


def test_nearest_allowed_sides() -> None:
    sizes = Sizes((9, 16, 8), (1, 16, 0), (12, None, 8))
    assert sizes.fitted((1, 1, 1)) == (9, 16, 8)
    assert sizes.fitted((40, 100, 100)) == (12, 96, 8)
    assert sizes.fitted((10, 104, 8)) == (10, 112, 8)
    assert sizes.fits((10, 32, 8))
    assert not sizes.fits((10, 40, 8))


def test_nothing_is_computed_and_nothing_changed() -> None:
    model = network("unet3d")
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    called = []
    model.register_forward_hook(lambda module, inputs, output: called.append(output.device.type))
    sizes_of(model)
    assert set(called) == {"meta"}
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_a_network_that_takes_nothing() -> None:
    class Refuses(nn.Module):
        in_channels = 1

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            raise OptionError("no")

    with pytest.raises(OptionError, match=r"no \(D, H, W\) was found that Refuses takes"):
        some_sides(Refuses())
    with pytest.raises(OptionError, match="Linear is not a network of svd_hub"):
        sizes_of(nn.Linear(2, 2))
