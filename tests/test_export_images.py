"""Export on a user's own images: what parity and int8 are given, what the artifact says of it, what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers_export import exportable, follow_once
from helpers_networks import sides
from typer.testing import CliRunner

from svd_hub.errors import CheckpointError, OptionError
from svd_hub.export import artifact, commands, export, exporting, verify
from svd_hub.export.inputs import MOST, PER_SHAPE, PER_VOLUME, calibration, cut, pieces, samples
from svd_hub.export.parity import ParityError
from svd_hub.export.profile import make_profile

KIND = "pooled"


def images(*shapes: tuple[int, int, int]) -> list[np.ndarray]:
    random = np.random.default_rng(3)
    return [random.normal(0, 1, (1, *shape)).astype(np.float32) for shape in shapes]


def within(piece: np.ndarray, whole: np.ndarray) -> bool:
    """Whether a piece is somewhere in a volume, found by its first voxel."""
    places = np.argwhere(whole[0] == piece[0, 0, 0, 0])
    cuts = (whole[0][tuple(slice(s, s + n) for s, n in zip(place, piece.shape[1:], strict=True))] for place in places)
    return any(part.shape == piece.shape[1:] and np.array_equal(part, piece[0]) for part in cuts)


def test_pieces_are_of_the_images_and_no_larger_than_is_taken() -> None:
    small, large = images((4, 20, 20), (9, 40, 30))
    found = pieces([small, large], exportable(KIND), (8, 1, 8, 32, 32))
    assert [piece.shape[1:] for piece in found] == [(4, 20, 20)] + [(8, 32, 30)] * PER_VOLUME
    assert np.array_equal(found[0], small)
    assert all(within(piece, large) for piece in found[1:])
    assert len(pieces([large] * MOST, exportable(KIND), (8, 1, 8, 32, 32))) == MOST


def test_what_has_the_very_sides_is_taken_whole() -> None:
    one, two = images((8, 32, 32), (4, 16, 16))
    assert np.array_equal(cut((1, 1, 4, 16, 16), [one, two], seed=0)[0], two)
    assert np.array_equal(cut((3, 1, 8, 32, 32), [one, two], seed=1), np.stack([one] * 3))
    assert within(cut((1, 1, 5, 20, 20), [one], seed=2)[0], one)
    mirrored = cut((1, 1, 4, 16, 24), [two], seed=3)[0]
    assert np.array_equal(mirrored[..., :16], two)
    assert np.array_equal(mirrored[..., 16:], two[..., :-9:-1])


def test_calibration_has_every_shape_of_parity() -> None:
    profile = make_profile(exportable(KIND), shape=(8, 32, 32))
    data = pieces(images((8, 32, 32), (12, 48, 48)), exportable(KIND), profile.largest)
    shapes = [array.shape for array in calibration(data, profile)]
    assert shapes[: len(data)] == [(1, 8, 32, 32)] * len(data)
    others = {case[1:] for case in profile.cases} - {(1, 8, 32, 32)}
    assert set(shapes) == others | {(1, 8, 32, 32)}
    assert len(shapes) == len(data) + PER_SHAPE * len(others)
    assert [volume.shape for volume in samples(profile.cases, None, data)] == list(profile.cases)


def test_an_artifact_says_so_and_is_verified_by_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    follow_once(monkeypatch, KIND)
    given = images((8, 32, 32), (9, 40, 40))
    for number, image in enumerate(given):
        np.save(tmp_path / f"{number}.npy", image)
    seen: list[Any] = []
    monkeypatch.setattr(exporting.inputs, "samples", lambda *args: seen.append(args[2]) or samples(*args))
    found = export(exportable(KIND), "onnx", tmp_path / "a", precision="fp16", shape=sides(KIND), images=tmp_path)
    assert found.manifest["images"] == len(seen[0]) == 2
    assert found.manifest["parity"]["passed"]
    assert any(within(artifact.golden(found)[0][0], image) for image in given)
    by_golden = verify(found.folder, model=exportable(KIND))
    assert by_golden.passed
    assert by_golden.parity is None
    assert "--images FOLDER" in by_golden.note
    whole = verify(found.folder, model=exportable(KIND), images=given)
    assert whole.passed
    assert whole.parity is not None
    assert len(whole.parity.cases) == len(found.manifest["parity"]["cases"])
    made_up = export(exportable(KIND), "onnx", tmp_path / "b", shape=sides(KIND))
    assert made_up.manifest["images"] == 0
    assert verify(made_up.folder, model=exportable(KIND)).parity is not None


def test_the_command(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    np.save(tmp_path / "in" / "one.npy", images((32, 32, 32))[0])
    options = ["--to", "torchscript", "--images", str(tmp_path / "in"), "--out", str(tmp_path / "out")]
    made = CliRunner().invoke(commands.app, ["run", "resnet3d18w16_lidc", *options])
    assert made.exit_code == 0, made.output
    assert "measured on pieces of images given (1); golden.safetensors holds one of them" in made.output
    asked = ["verify", str(tmp_path / "out"), "--images", str(tmp_path / "in"), "--json"]
    told = CliRunner().invoke(commands.app, asked)
    assert told.exit_code == 0, told.output
    assert json.loads(told.output)["parity"]["passed"]
    (tmp_path / "out" / artifact.GOLDEN).write_bytes(b"")
    told = CliRunner().invoke(commands.app, asked)
    assert told.exit_code == 1
    assert "expected sha256" in json.loads(told.output)["note"]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([], "no images in what was given; allowed: what svd-hub predict reads"),
        ("nowhere", "images='nowhere' is no folder"),
        (images((4, 4, 4))[0][None].repeat(2, 1)[None], r"an image of shape \(1, 2, 4, 4, 4\) is not allowed"),
        ([np.full((1, 4, 4, 4), np.nan)], "an image of shape .* allowed: finite"),
    ],
)
def test_what_is_refused(given: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(OptionError, match=message):
        export(exportable(KIND), "torchscript", tmp_path / "a", shape=sides(KIND), images=given)
    assert not (tmp_path / "a").exists()


def test_an_artifact_of_an_earlier_release(tmp_path: Path) -> None:
    (tmp_path / artifact.MANIFEST).write_text(json.dumps({"format": "onnx", "schema": 1}))
    with pytest.raises(CheckpointError, match=r"of schema 1, of an earlier svd_hub, .* Next: export it again"):
        artifact.read(tmp_path)


# ---- int8 that would be refused is tried again -----------------------------------------------------------------------


@pytest.mark.parametrize(("failing", "keep"), [(0, False), (1, False), (2, False), (2, True)])
def test_int8_is_tried_again_with_the_projections_of_shortcuts_in_float32(
    failing: int, keep: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    follow_once(monkeypatch, "resnet3d")
    left, tries = failing, []
    measure = exporting.checked

    def checked(*args: Any) -> Any:
        nonlocal left
        report = measure(*args)
        tries.append(sorted(path.name for path in args[3].iterdir()))
        left -= 1
        return exporting.replace(report, tolerance=0.0 if left >= 0 else report.tolerance)

    monkeypatch.setattr(exporting, "checked", checked)
    options: dict[str, Any] = {"precision": "int8", "shape": sides("resnet3d"), "keep_failing": keep}
    options["images"] = images(*[sides("resnet3d")] * 2)
    model = exportable("resnet3d")
    if failing == 2 and not keep:
        with pytest.raises(ParityError, match="Next: another precision, more images like those"):
            export(model, "onnx", tmp_path / "a", **options)
        assert not list(tmp_path.iterdir()), "nothing is left behind, of either try"
        return
    found = export(model, "onnx", tmp_path / "a", **options)
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
    assert len(tries) == min(failing, 1) + 1
    assert tries[0] == tries[-1]
    assert ("note" in found.manifest["built"]) == (failing > 0)
    assert found.manifest["parity"]["passed"] == (failing < 2)
    pairs = found.manifest["built"]["operators"]["QuantizeLinear"]
    kernels = found.manifest["built"]["operators"]["DequantizeLinear"] - pairs
    convolutions = found.manifest["built"]["operators"]["Conv"]
    assert convolutions - kernels == (3 if failing else 0), "three stages have a projection"


def test_made_up_volumes_are_said_to_be_the_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    measure = exporting.checked
    monkeypatch.setattr(exporting, "checked", lambda *args: exporting.replace(measure(*args), tolerance=-1.0))
    with pytest.raises(ParityError, match=r"Next: another precision, images that it will see \(images=FOLDER\)"):
        export(exportable(KIND), "torchscript", tmp_path / "a", shape=sides(KIND))
    assert not (tmp_path / "a").exists()
