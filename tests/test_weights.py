"""Our weights, bundled or in `releases/`: they load, give their golden outputs, and their cards say what logs say."""

from __future__ import annotations

import hashlib
import json
import shutil
from importlib import resources
from pathlib import Path

import pytest

import svd_hub
from svd_hub import checkpoint
from svd_hub.errors import SvdHubError
from svd_hub.training.publish import golden

OURS = svd_hub.list_entries(status="ours")
BUNDLED, RELEASES = Path(str(resources.files("svd_hub.weights"))), Path(__file__).resolve().parents[1] / "releases"


def folder_of(name: str) -> Path:
    return BUNDLED if svd_hub.get_entry(name).source.kind == "bundled" else RELEASES / name


def test_there_is_one_of_each_kind() -> None:
    assert {"resnet3d18w16_tinyimagenet", "resnet3d18w16_lidc", "unet3d18w16_ctorgans"} <= set(OURS)


@pytest.mark.parametrize("name", OURS)
def test_golden_output(name: str) -> None:
    _, report = svd_hub.load(name, return_report=True)
    assert len(report.matched) == report.total
    assert golden.check(folder_of(name), name) <= golden.SAME


@pytest.mark.parametrize("name", OURS)
def test_golden_output_notices_a_change(name: str, tmp_path: Path) -> None:
    read = checkpoint.read(folder_of(name) / f"{name}.safetensors")
    tensors = {key: tensor.clone() for key, tensor in read.tensors.items()}
    key = next(key for key in tensors if key.removeprefix("backbone.") == "layer2.0.conv1.weight")
    tensors[key] *= 1.05
    checkpoint.write(tmp_path / f"{name}.safetensors", tensors, read.metadata)
    shutil.copy(golden.file_of(folder_of(name), name), tmp_path)
    with pytest.raises(SvdHubError, match="does not give the golden output"):
        golden.check(tmp_path, name)


@pytest.mark.parametrize("name", OURS)
def test_the_card_says_what_the_log_says(name: str) -> None:
    entry = svd_hub.get_entry(name)
    last = json.loads((folder_of(name) / f"{name}.log.jsonl").read_text().splitlines()[-1])
    card = {metric.name: metric.value for metric in entry.metrics if metric.made_by == entry.recipe}
    assert card
    for metric, value in card.items():  # the card is the bundled file in fp32, the log may be of bf16 autocast
        assert abs(value - last[f"val/{metric}"]) <= 0.005, metric


@pytest.mark.parametrize("name", [name for name in OURS if svd_hub.get_entry(name).architecture == "resnet3d"])
def test_one_word_makes_the_transfer_form(name: str) -> None:
    kept = svd_hub.load(name, depth_stride=1, num_classes=0)
    strided = svd_hub.load(name, depth_stride=2, num_classes=0)
    assert kept.state_dict().keys() == strided.state_dict().keys()
    assert [f.stride[0] for f in kept.feature_info] == [1] * len(kept.feature_info)
    assert strided.feature_info[-1].stride[0] == strided.feature_info[-1].stride[1]


def test_releases_are_in_the_catalogue_and_whole() -> None:
    found = sorted(path.name for path in RELEASES.iterdir() if path.is_dir())
    assert found == sorted(name for name in OURS if svd_hub.get_entry(name).source.kind == "mirror")
    for name in found:
        for line in (RELEASES / name / "SHA256SUMS").read_text().splitlines():
            digest, file = line.split()
            assert hashlib.sha256((RELEASES / name / file).read_bytes()).hexdigest() == digest, file
