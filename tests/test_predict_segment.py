"""Labels are the argmax of the whole volume's logits, interpolated to its grid, whatever the way they are made."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers_predict import Bright, blob, segmenter
from helpers_volume import AXES
from monai.inferers import sliding_window_inference
from torch import Tensor, nn

from svd_hub import Inference, Predictor, Preprocess, images
from svd_hub.errors import OptionError, VolumeError
from svd_hub.predict.segment import segment
from svd_hub.volume import Volume

CPU = torch.device("cpu")
ARRAY = np.random.default_rng(0).integers(-300, 400, (19, 22, 25)).astype(np.int16)
SPACING = (2.0, 1.0, 1.5)


def logits_of(network: nn.Module, rule: Preprocess, inference: Inference, array: np.ndarray) -> Tensor:
    """(K, D, H, W) of the whole volume on the network's grid, by MONAI, in the orientation of the weights."""
    x = rule(array, spacing=SPACING, orientation="SPL")
    window, stride = inference.windows(rule.size, rule.minimum)
    overlap = [max(0.0, 1 - (s + 1e-6) / w) for s, w in zip(stride, window, strict=True)]
    air = float(rule(np.full((2, 2, 2), rule.padding), spacing=SPACING).flatten()[0])  # what padding is to the network
    with torch.inference_mode():
        return sliding_window_inference(x, window, 2, network, overlap=overlap, mode=inference.blend, cval=air)[0]


def on_volume(logits: Tensor, rule: Preprocess, shape: tuple[int, ...]) -> Tensor:
    """Interpolate whole logits to the volume's grid, and turn them back from the weights' orientation to SPL."""
    want = rule.orientation or "SPL"
    view, order = images.turned(np.empty(shape), "SPL", want)
    if logits.shape[1:] != view.shape:
        logits = F.interpolate(logits[None], size=view.shape, mode="trilinear", align_corners=False)[0]
    steps = ["SPL"[old] == letter for old, letter in zip(order, want, strict=True)]
    flipped = logits.flip([1 + axis for axis, straight in enumerate(steps) if not straight])
    return flipped.permute(0, *(1 + order.index(axis) for axis in range(3)))


def agree(found: np.ndarray, logits: Tensor, expected: np.ndarray) -> None:
    """The same, but where the two highest logits are a rounding apart."""
    assert found.shape == expected.shape
    if (wrong := found != expected).any():
        top = logits.topk(min(2, len(logits)), 0).values
        margin = (top[0] - top[-1]).numpy() if len(logits) > 1 else logits[0].abs().numpy()
        assert margin[wrong].max() < 1e-3, f"{wrong.sum()} voxels differ"
        assert wrong.mean() < 1e-3


@pytest.mark.parametrize("blend", ["gaussian", "constant"])
@pytest.mark.parametrize("at_once", [None, 1, 3])
def test_on_the_same_grid_labels_are_the_argmax_of_monais_logits(blend: str, at_once: int | None) -> None:
    model = segmenter(blend=blend)
    logits = logits_of(model, model.preprocess, model.inference, ARRAY)
    result = Predictor(model, at_once=at_once)(ARRAY, spacing=SPACING)
    agree(result.labels, logits, logits.argmax(0).numpy())
    assert len(set(result.labels.ravel())) > 2, "a test without labels"
    assert result.voxels == tuple((result.labels == k).sum() for k in range(4))
    ml = {name: int((result.labels == k).sum()) * 3.0 / 1000 for k, name in enumerate(result.classes) if k}
    assert result.millilitres == pytest.approx(ml)


@pytest.mark.parametrize("spacing", [(3.0, 3.0, 3.0), (4.0, 1.0, 1.5), (1.0, 2.0, 1.2), (2.0, 5.0, 2.0)])
def test_on_another_grid_logits_are_interpolated_before_the_argmax(spacing: tuple[float, float, float]) -> None:
    model = segmenter(rule={"spacing": spacing}, window=(8, 16, 16))
    logits = on_volume(logits_of(model, model.preprocess, model.inference, ARRAY), model.preprocess, ARRAY.shape)
    agree(Predictor(model)(ARRAY, spacing=SPACING).labels, logits, logits.argmax(0).numpy())


@pytest.mark.parametrize("axes", AXES)
def test_every_orientation_of_the_weights(axes: str) -> None:
    """A network that tells directions apart: each class is another neighbour, in its own axes."""
    network = Neighbours()
    rule = Preprocess(orientation=axes, spacing=(1.7, 1.3, 1.0), window=(-300.0, 400.0))
    inference = Inference(window=(10, 9, 12), stride=(7, 5, 6))
    logits = on_volume(logits_of(network, rule, inference, ARRAY), rule, ARRAY.shape)
    volume = Volume.from_array(ARRAY, spacing=SPACING, modality="CT")
    with torch.inference_mode():
        found = segment(network, volume, rule, inference, labels=3, device=CPU)
    agree(found, logits, logits.argmax(0).numpy())


class Neighbours(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x, x.roll(1, 2), x.roll(2, 4)], 1)


def test_classes_of_their_own() -> None:
    """Sigmoid: the likeliest of those above one half, else none of them; labels begin at 1."""
    model = segmenter(activation="sigmoid")
    logits = logits_of(model, model.preprocess, model.inference, ARRAY)
    result = Predictor(model)(ARRAY, spacing=SPACING)
    assert result.classes == ("background", "background", "liver", "spleen", "kidneys"), "the entry names four maps"
    shares = torch.sigmoid(logits)
    expected = torch.where(shares.max(0).values > 0.5, shares.argmax(0) + 1, 0).numpy()
    wrong = result.labels != expected
    assert wrong.mean() < 1e-3
    assert {0, 1} < set(result.labels.ravel().tolist()) | {0, 1, 2}


def test_more_labels_than_a_byte_holds() -> None:
    class Many(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return -((x - torch.arange(300.0).view(1, 300, 1, 1, 1)) ** 2)

    array = np.random.default_rng(1).integers(0, 300, (6, 20, 20)).astype(np.int16)
    array[0, 0, :2] = 0, 299
    volume = Volume.from_array(array, spacing=(1, 1, 1))
    for labels, kind in ((300, np.uint16), (256, np.uint8)):
        found = segment(
            Many(), volume, Preprocess(), Inference(window=(4, 8, 8)), labels=labels, device=CPU
        )  # fmt: skip
        assert found.dtype == kind
        if labels == 300:
            assert (found == array).all()


@pytest.mark.parametrize("shape", [(2, 2, 2), (3, 40, 5), (2, 17, 90)])
def test_a_volume_smaller_than_a_window(shape: tuple[int, int, int]) -> None:
    array = np.random.default_rng(2).integers(-300, 400, shape).astype(np.int16)
    model = segmenter(rule={"minimum": (16, 16, 16)})
    result = Predictor(model)(array, spacing=SPACING)
    x = model.preprocess(array, spacing=SPACING, orientation="SPL")
    # Preprocess pads about the centre up to `minimum`, as the windows do: compare where no padding is.
    window, stride = model.inference.windows(None, (16, 16, 16))
    with torch.inference_mode():
        logits = sliding_window_inference(x, window, 1, model, overlap=0.5, mode="gaussian")[0]
    at = [(n - s) // 2 for n, s in zip(x.shape[2:], shape, strict=True)]
    inner = logits[:, at[0] : at[0] + shape[0], at[1] : at[1] + shape[1], at[2] : at[2] + shape[2]]
    agree(result.labels, inner, inner.argmax(0).numpy())
    assert stride == (8, 8, 8)


def test_the_threshold_network_draws_the_blob() -> None:
    hu, inside = blob()
    result = Predictor(Bright())(hu, spacing=(2.0, 1.0, 1.0))
    assert (result.labels == inside).all()
    assert (result.mask("blob") == inside).all()
    with pytest.raises(VolumeError, match="class 'liver' is not one of these; allowed: background, blob"):
        result.mask("liver")


def test_progress_is_told_to_its_end() -> None:
    told: list[tuple[int, int]] = []
    Predictor(segmenter())(ARRAY, spacing=SPACING, done=lambda now, total: told.append((now, total)))
    assert told[-1][0] == told[-1][1]
    assert [now for now, _ in told] == sorted({now for now, _ in told})


def test_a_class_to_keep_that_is_none() -> None:
    model = segmenter(largest=("heart",))
    with pytest.raises(OptionError, match=r"largest='heart' is no class of .*; allowed: liver, spleen, kidneys"):
        Predictor(model)


def test_only_the_largest_part_is_kept_and_said() -> None:
    hu, inside = blob()
    spot = np.zeros_like(inside)
    spot[-1, -3:, -3:] = True
    hu[spot] = 900
    model = Bright()
    model.inference = Inference(window=(8, 16, 16), largest=("blob",))
    result = Predictor(model)(hu, spacing=(2.0, 1.0, 1.0))
    assert (result.labels == inside).all()
    assert result.voxels[1] == inside.sum()
    assert "blob: the largest connected part is kept, 9 voxels of others were taken away" in result.notes


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_network_that_makes_no_numbers_is_an_error(value: float) -> None:
    model = Bright()
    with torch.no_grad():
        model.scale.fill_(value)
    with pytest.raises(VolumeError, match=r"the network's output holds NaN or infinity .* Next: "):
        Predictor(model)(blob()[0], spacing=(1.0, 1.0, 1.0))
