"""Laws of the Genesis U-Net: an independent statement of it, its norms, parts, sizes, names and errors."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from helpers_genesis import State, documented_shapes, image, state_unet, values
from torch import Tensor

from svd_hub import preserve_depth
from svd_hub.errors import OptionError
from svd_hub.models import Feature
from svd_hub.models.unet3d_genesis import GenesisUNet3D
from svd_hub.skeleton import shapes, skeleton

torch.set_num_threads(1)
LEVELS = ("level0", "level1", "level2", "level3")


def make(**options: Any) -> tuple[GenesisUNet3D, State]:
    """A narrow network in evaluation mode with the values of the whole one, as far as it has them."""
    given = {"width": 2, **options}
    state = values(documented_shapes(2, given.get("in_channels", 1), given.get("num_classes", 1) or 1))
    model = GenesisUNet3D(**given).double().eval()
    model.load_state_dict({name: state[name] for name in model.state_dict()}, strict=True)
    return model, state


def close(a: Any, b: Tensor) -> None:
    torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("batch", [True, False])
@pytest.mark.parametrize("shape", [(2, 1, 8, 16, 24), (1, 3, 16, 16, 16)], ids=str)
def test_pyramid_and_map_agree_with_the_statement(shape: tuple[int, ...], batch: bool) -> None:
    x = image(*shape)
    model, state = make(in_channels=shape[1], num_classes=3, batch_statistics=batch)
    expected = state_unet(state, x, batch=batch)
    close(model(x), expected["map"])
    assert model(x).shape == (shape[0], 3, *shape[2:])
    got = model.features(x)
    assert tuple(got) == LEVELS
    for name in LEVELS:
        close(got[name], expected[name])


def test_the_forms_without_a_map_share_the_values() -> None:
    x = image(2, 1, 8, 8, 16)
    _, state = make()
    expected = state_unet(state, x)
    pyramid = make(features_only=True)[0](x)
    assert tuple(pyramid) == LEVELS
    for name in LEVELS:
        close(pyramid[name], expected[name])
    close(make(num_classes=0)[0](x), expected["level3"].mean((2, 3, 4)))
    close(make(num_classes=0, keep_decoder=True)[0](x), expected["dense"])
    close(make(final_activation="none")[0](x), expected["logits"])
    assert tuple(make(features_only=True, num_classes=0, keep_decoder=True)[0](x)) == LEVELS


def test_the_pyramid_describes_itself() -> None:
    model, _ = make(features_only=True)
    assert model.feature_info == tuple(Feature(f"level{i}", 4 * 2**i, (2**i,) * 3) for i in range(4))
    maps = model(image(1, 1, 16, 32, 16))
    for level in model.feature_info:
        assert maps[level.name].shape[1:] == (
            level.channels,
            *(s // t for s, t in zip((16, 32, 16), level.stride, strict=True)),
        )


# ---- norms -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch", [True, False])
def test_evaluation_leaves_every_buffer_alone(batch: bool) -> None:
    model, _ = make(batch_statistics=batch)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    first = model(image(2, 1, 8, 8, 16))
    assert torch.equal(first, model(image(2, 1, 8, 8, 16)))
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("batch", [True, False])
def test_training_uses_the_batch_and_updates_the_running_statistics(batch: bool) -> None:
    model, state = make(batch_statistics=batch)
    x = image(2, 1, 8, 8, 16)
    close(model.train()(x), state_unet(state, x, batch=True)["map"])
    first = F.conv3d(x, state["down_tr64.ops.0.conv1.weight"], state["down_tr64.ops.0.conv1.bias"], padding=1)
    name = "down_tr64.ops.0.bn1"
    now = model.state_dict()
    close(now[f"{name}.running_mean"], 0.9 * state[f"{name}.running_mean"] + 0.1 * first.mean((0, 2, 3, 4)))
    close(now[f"{name}.running_var"], 0.9 * state[f"{name}.running_var"] + 0.1 * first.var((0, 2, 3, 4)))
    assert now[f"{name}.num_batches_tracked"] == state[f"{name}.num_batches_tracked"] + 1


def test_batch_statistics_depend_on_the_other_images_and_running_ones_do_not() -> None:
    x = image(2, 1, 8, 8, 16)
    for batch in (True, False):
        model, _ = make(batch_statistics=batch)
        apart = (model(x)[:1] - model(x[:1])).abs().max()
        assert (apart > 1e-3) == batch
        assert batch or apart < 1e-12


def test_gradients_reach_every_parameter_in_evaluation_too() -> None:
    model, _ = make()
    model(image(1, 1, 8, 16, 16)).square().sum().backward()
    # a bias before a norm of the batch has no effect, so its gradient is rounding
    assert all(p.grad is not None for p in model.parameters())
    assert all(p.grad.abs().max() > 1e-8 for n, p in model.named_parameters() if n.endswith("weight"))  # type: ignore[union-attr]


# ---- names, counts, sizes --------------------------------------------------------------------------------------------


def test_names_and_shapes_are_the_documented_ones() -> None:
    whole = skeleton("unet3d_genesis", {})
    assert shapes(whole.state_dict()) == documented_shapes()
    assert sum(p.numel() for p in whole.parameters()) == 19_073_665
    assert len(whole.state_dict()) == 106
    encoder = skeleton("unet3d_genesis", {"num_classes": 0})
    assert sum(p.numel() for p in encoder.parameters()) == 7_027_776
    assert all(name.startswith("down_tr") for name in encoder.state_dict())
    dense = skeleton("unet3d_genesis", {"num_classes": 0, "keep_decoder": True})
    assert shapes(whole.state_dict()).keys() - shapes(dense.state_dict()).keys() == {
        "out_tr.final_conv.weight",
        "out_tr.final_conv.bias",
    }


def test_head_and_decoder_are_what_the_encoder_lacks() -> None:
    whole, encoder = (set(skeleton("unet3d_genesis", {"num_classes": n}).state_dict()) for n in (1, 0))
    lacks = {n for n in whole if n.startswith((*GenesisUNet3D.head, *GenesisUNet3D.decoder))}
    assert whole - encoder == lacks
    one, five = (shapes(skeleton("unet3d_genesis", {"num_classes": n}).state_dict()) for n in (1, 5))
    assert {n for n in one if one[n] != five[n]} == {n for n in one if n.startswith(GenesisUNet3D.head)}


def test_weight_options_change_shapes_and_the_others_do_not() -> None:
    plain = shapes(GenesisUNet3D(width=2).state_dict())
    for options in ({"batch_statistics": False}, {"final_activation": "none"}, {"keep_decoder": True}):
        assert shapes(GenesisUNet3D(width=2, **options).state_dict()) == plain
    assert GenesisUNet3D.weight_options == ("width",)
    assert shapes(GenesisUNet3D(width=4).state_dict()) != plain


def test_the_encoder_keeps_the_depth_of_three_slices_where_it_is_told_to() -> None:
    model, report = preserve_depth(make(features_only=True)[0])
    assert report.complete
    maps = model(image(1, 1, 3, 16, 16))
    assert [tuple(maps[name].shape[2:]) for name in LEVELS] == [(3, 16, 16), (3, 8, 8), (3, 4, 4), (3, 2, 2)]


def test_a_trace_takes_other_sizes_and_gives_the_same() -> None:
    model, _ = make()
    with pytest.warns(DeprecationWarning, match="jit"):
        traced = torch.jit.trace(model, image(1, 1, 8, 8, 16))
    x = image(2, 1, 16, 8, 8)
    close(traced(x), model(x))


BAD: tuple[tuple[dict[str, Any], str], ...] = (
    ({"width": 0}, r"width=0 .*1 or more"),
    ({"final_activation": "softmax"}, r"final_activation='softmax' .*sigmoid.*none"),
    ({"batch_statistics": "no"}, r"batch_statistics='no' .*True, False"),
    ({"num_classes": -1}, r"num_classes=-1.*>= 0"),
    ({"in_channels": 0}, r"in_channels=0.*>= 1"),
)


@pytest.mark.parametrize(("options", "message"), BAD, ids=str)
def test_bad_options_say_what_is_allowed(options: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        GenesisUNet3D(**{"width": 2, **options})


SIZES: tuple[tuple[dict[str, Any], tuple[int, ...], str], ...] = (
    ({}, (1, 1, 12, 16, 16), r"\(12, 16, 16\).*divisible by \(8, 8, 8\).*\(16, 16, 16\)"),
    ({"num_classes": 0, "keep_decoder": True}, (1, 1, 16, 16, 9), r"divisible.*\(16, 16, 16\)"),
    ({}, (1, 2, 16, 16, 16), r"\(N, 1, D, H, W\)"),
    ({}, (1, 1, 8, 8, 8), r"one value per channel.*Next: a larger crop"),
    ({"num_classes": 0}, (1, 1, 7, 16, 16), r"\(7, 16, 16\).*of \(8, 8, 8\) or more"),
    ({"features_only": True}, (1, 1, 15, 15, 15), r"one value per channel"),
)


@pytest.mark.parametrize(("options", "shape", "message"), SIZES, ids=str)
def test_bad_sizes_say_what_is_allowed(options: dict[str, Any], shape: tuple[int, ...], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        make(**options)[0](image(*shape))


def test_sizes_that_are_allowed() -> None:
    assert make(num_classes=0)[0](image(1, 1, 10, 17, 16)).shape == (1, 32)
    assert make()[0](image(2, 1, 8, 8, 8)).shape == (2, 1, 8, 8, 8)
    assert make(batch_statistics=False)[0](image(1, 1, 8, 8, 8)).shape == (1, 1, 8, 8, 8)
    with pytest.raises(OptionError, match="one value per channel"):
        make(batch_statistics=False)[0].train()(image(1, 1, 8, 8, 8))
