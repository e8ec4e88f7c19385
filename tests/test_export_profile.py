"""Shapes: those that parity is measured at, those that a network is followed with, and those that are refused."""

from __future__ import annotations

import numpy as np
import pytest
from helpers_networks import KINDS, network, sides

import svd_hub
from svd_hub.errors import OptionError
from svd_hub.export.formats import AXES
from svd_hub.export.profile import Profile, make_profile
from svd_hub.sizes import Sizes


@pytest.mark.parametrize("kind", KINDS)
def test_the_shapes_of_a_profile(kind: str) -> None:
    model = network(kind)
    profile = make_profile(model, shape=sides(kind))
    low, middle, high = (np.array(shape) for shape in (profile.smallest, profile.typical, profile.largest))
    assert (low <= middle).all()
    assert (middle <= high).all()
    assert middle[2:].tolist() == list(sides(kind))
    cases = profile.cases
    assert len(cases) >= 4
    assert len(set(cases)) == len(cases)
    assert {shape[0] for shape in cases} == {1, 3}
    assert {profile.smallest, profile.typical} < set(cases)
    for shape in (*cases, profile.sample(model.feature_info[-1].stride)):
        assert profile.sizes.fits(shape[2:])
        assert (low[2:] <= np.array(shape[2:])).all() or shape not in cases
    for axis, step in enumerate(profile.sizes.step):
        if step and low[axis + 2] < middle[axis + 2] - step:
            assert profile.odd[axis + 2] // step % 2 == 1
    assert profile.odd[3] != profile.odd[4]  # a swap of H and W is seen


@pytest.mark.parametrize("kind", KINDS)
def test_no_axis_of_the_sample_is_special(kind: str) -> None:
    model = network(kind)
    profile = make_profile(model, shape=sides(kind))
    strides = [level.stride for level in model.feature_info]
    sample = profile.sample(strides[-1])
    assert sample[0] == 2
    for axis, name in enumerate(AXES[1:]):
        if name in profile.dynamic and profile.sizes.most[axis] is None:
            assert sample[axis + 2] > max(stride[axis] for stride in strides)
    assert len({n for n, name in zip(sample[2:], AXES[1:], strict=True) if name in profile.dynamic}) >= len(
        [name for name in AXES[1:] if name in profile.dynamic]
    )


def test_a_closed_axis_has_one_length() -> None:
    profile = make_profile(network("resnet3d"), shape=(8, 32, 48), dynamic=("height", "batch"))
    assert profile.dims == ("batch", 1, 8, "height", 48)
    assert profile.dynamic == ("batch", "height")
    assert {shape[2] for shape in profile.cases} == {8}
    assert {shape[4] for shape in profile.cases} == {48}
    assert make_profile(network("resnet3d"), shape=(3, 1, 8, 32, 48), dynamic=()).cases == ((3, 1, 8, 32, 48),)
    # the group transform is made for one depth
    assert make_profile(network("detector_group"), shape=(5, 64, 64)).dims[2] == 5


def test_the_typical_shape_is_the_records() -> None:
    def typical(name: str, **options: object) -> tuple[int, ...]:
        return make_profile(svd_hub.load(name, **options)).typical[2:]

    assert typical("resnet3d18w16_lidc") == svd_hub.get_entry("resnet3d18w16_lidc").preprocess.size
    assert typical("unet3d18w16_ctorgans") == svd_hub.get_entry("unet3d18w16_ctorgans").inference.window


def test_what_is_refused() -> None:
    model = network("genesis")
    with pytest.raises(OptionError, match=r"shape=\(8, 30, 32\) .* in steps of \(8, 8, 8\).* Next: \(8, 32, 32\)"):
        make_profile(model, shape=(8, 30, 32))
    with pytest.raises(OptionError, match=r"shape=\(1, 2, 8, 32, 32\) .* allowed: \(D, H, W\) or \(N, 1, D, H, W\)"):
        make_profile(model, shape=(1, 2, 8, 32, 32))
    with pytest.raises(OptionError, match="dynamic='depht' is not allowed; allowed: batch, depth, height, width"):
        make_profile(model, shape=(8, 32, 32), dynamic=("depht",))
    with pytest.raises(OptionError, match="are not in order"):
        make_profile(model, shape=(8, 32, 32), largest=(8, 32, 16))
    asked = make_profile(model, shape=(2, 1, 8, 32, 32), smallest=(2, 1, 8, 16, 16), largest=(4, 1, 16, 64, 64))
    assert (asked.smallest, asked.largest) == ((2, 1, 8, 16, 16), (4, 1, 16, 64, 64))


def test_a_bound_of_a_closed_axis_is_not_dropped_silently() -> None:
    model = network("pooled")
    with pytest.raises(
        OptionError, match=r"largest=\(4, 64, 64\) is not allowed where height, width is closed .* Next: open"
    ):
        make_profile(model, shape=(4, 32, 32), largest=(4, 64, 64), dynamic=("batch", "depth"))
    with pytest.raises(OptionError, match=r"smallest=\(2, 1, 4, 32, 32\) .* batch is closed"):
        make_profile(model, shape=(4, 32, 32), smallest=(2, 1, 4, 32, 32), dynamic=())
    fine = make_profile(model, shape=(4, 32, 32), largest=(8, 32, 32), dynamic=("depth",))
    assert fine.largest == (1, 1, 8, 32, 32)


def test_odd_sides_stay_between() -> None:
    sizes = Sizes((1, 1, 1), (1, 1, 1), (None, None, None))
    for seed in range(200):
        random = np.random.default_rng(seed)
        low = random.integers(1, 40, 3)
        middle = low + random.integers(0, 40, 3)
        high = middle + random.integers(0, 40, 3)
        profile = Profile(*((1, 1, *map(int, shape)) for shape in (low, middle, high)), dynamic=AXES, sizes=sizes)  # type: ignore[misc, arg-type]
        assert (low <= profile.odd[2:]).all()
        assert (np.array(profile.odd[2:]) <= high).all()
