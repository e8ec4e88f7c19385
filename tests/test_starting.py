"""Laws of what a classifier starts from: any network with an encoder gives that encoder, under a new head."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import svd_hub
from svd_hub.errors import OptionError, SvdHubError
from svd_hub.training import engine
from svd_hub.training.miniature.own import labelled
from svd_hub.training.tasks.classification import Network, build_network

SMALL = {"depth": 10, "width": 4}
ASKED = {"in_channels": 1, "num_classes": 3, "depth_stride": 2}
SEGMENTERS: dict[str, tuple[str, dict[str, Any], str, str]] = {
    "unet3d": ("unet3d18w16_ctorgans", {"encoder_options": {**SMALL, "stem_pool": False}}, "resnet3d", "backbone."),
    "segresnet_ds": ("segresnet_ctfm", {"init_filters": 4, "blocks_down": (1, 1, 1, 1, 1)}, "segresencoder", ""),
    "genesis": ("unet3d_genesis", {"width": 2}, "unet3d_genesis", ""),
}


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def saved(folder: Path, name: str, **options: Any) -> Path:
    made: Path = svd_hub.save(svd_hub.load(name, weights=None, **options), folder / "net.safetensors")
    return made


@pytest.mark.parametrize("case", SEGMENTERS)
def test_a_segmenter_gives_its_encoder_and_the_head_is_new(tmp_path: Path, case: str) -> None:
    entry, options, architecture, prefix = SEGMENTERS[case]
    file = saved(tmp_path, entry, **options)
    made: Any = build_network(Network(init=str(file), options=ASKED))
    assert made.training
    assert made.entry.architecture == architecture
    before, after = svd_hub.load(file).state_dict(), made.state_dict()
    kept = {name for name in after if not name.startswith("fc.")}
    assert kept
    assert all(torch.equal(after[name], before[prefix + name]) for name in kept)
    rebuilt = svd_hub.models.build(architecture, made.options)
    assert {k: v.shape for k, v in rebuilt.state_dict().items()} == {k: v.shape for k, v in after.items()}
    assert made(torch.zeros(2, 1, 32, 32, 32)).shape == (2, 3)


def test_the_encoder_keeps_its_form_but_for_what_the_recipe_says(tmp_path: Path) -> None:
    file = saved(tmp_path, "unet3d18w16_ctorgans", encoder_options={**SMALL, "stem_pool": False})
    made: Any = build_network(Network(init=str(file), options={**ASKED, "depth_stride": 1}))
    assert (made.options["stem_stride"], made.options["stem_pool"], made.options["depth_stride"]) == (1, False, 1)
    with pytest.raises(OptionError, match=r"its encoder is not the resnet3d that .*'width': 8.*Next") as told:
        build_network(Network(init=str(file), options={**ASKED, "width": 8}))
    assert "\n" not in str(told.value)


def test_a_detector_gives_its_encoder(tmp_path: Path) -> None:
    made = svd_hub.load("mp3d63_coco_detector", weights=None, encoder_options={"width": 8, "variant": "18ba"})
    file = svd_hub.save(made, tmp_path / "net.safetensors")
    classifier: Any = build_network(Network(init=str(file), options={"in_channels": 1, "num_classes": 2}))
    assert classifier.entry.architecture == "p3d"
    before, after = made.backbone.state_dict(), classifier.state_dict()
    assert all(torch.equal(after[name], before[name]) for name in before)
    assert {name for name in after if name not in before} == {"fc.weight", "fc.bias"}


def test_a_segmenter_without_an_encoder_of_its_own_is_refused_before_there_is_a_run(tmp_path: Path) -> None:
    file = saved(tmp_path, "segresnet_suprem", init_filters=4, blocks_down=(1, 1))
    overrides = {"data.init_args.folder": str(labelled(tmp_path)), "task.init_args.network.init": str(file)}
    with pytest.raises(SvdHubError, match=r"a segresnet, a segmenter whose encoder.*Next: svd-hub list") as told:
        engine.train("finetune-classify", run=tmp_path / "run", overrides=overrides, progress=False)
    assert "\n" not in str(told.value)
    assert not (tmp_path / "run").exists()


def test_a_classifier_from_a_segmenter_trains_and_its_result_stands_alone(tmp_path: Path) -> None:
    """The command that ended in a traceback."""
    file = saved(tmp_path, "unet3d18w16_ctorgans", encoder_options=SMALL)
    overrides = {
        "data.init_args.folder": str(labelled(tmp_path)),
        "data.init_args.batch_size": 4,
        "data.init_args.reading.size": "[8, 12, 12]",
        "task.init_args.network.init": str(file),
        "run.epochs": 1,
        "run.threads": 1,
    }
    result = engine.train("finetune-classify", run=tmp_path / "run", overrides=overrides, progress=False)
    model = svd_hub.load(result)
    assert (model.entry.architecture, model.entry.task) == ("resnet3d", "classification")
    assert model.entry.classes == ("soft", "solid")
    assert model(torch.zeros(1, 1, 8, 12, 12)).shape == (1, 2)
