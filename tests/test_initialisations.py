"""The eight starting points of the paper's Table IV: fine-tuning from each is one changed word of one recipe."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import test_links as links
import torch
import upstream_layouts as upstream
from synthetic import Shelf, official

import svd_hub
from svd_hub.canonical import convert_file
from svd_hub.catalog import get_entry

pytest.importorskip("pytorch_lightning")

TABLE_IV = (
    "none",
    "resnet3d18_kinetics_moments",
    "resnet3d18_med3d23",
    "unet3d_genesis",
    "rubik_cube",
    "resnet3d18_imagenet_i3d",
    "resnet3d18_imagenet_acs",
    "resnet3d18_imagenet",
)


def hosted(shelf: Shelf, tmp_path: Path, name: str) -> str:
    """Put a narrow file of the documented layout where the entry looks for it; return the word for `init`."""
    if name == "none":
        return name
    entry = get_entry(name)
    if name == "rubik_cube":
        shapes = {n: s for n, s in links.helpers_genesis.documented_shapes(width=2).items() if n.startswith("down")}
        file = tmp_path / "rcb.pth"
        file.write_bytes(upstream.saved({"state_dict": upstream.prefixed(upstream.values(shapes), "encoder.")}))
        shelf.tables[name] = {"options": {"width": 2}}
        shelf.write()
        convert_file(name, file, to=tmp_path / "rcb.safetensors")
        return str(tmp_path / "rcb.safetensors")
    if entry.origin == "kinetics":
        classes = entry.options["num_classes"]
        body = upstream.saved({"state_dict": upstream.values(upstream.resnet(18, width=4, classes=classes))})
        shelf.put(name, body, source={"kind": "folder", "file": entry.source.file}, options={"width": 4})
    elif name == "resnet3d18_imagenet":
        shelf.put_official(official(width=8))
    else:
        body, narrow = links.file_of(entry)
        shelf.put(
            name, body, source={"kind": "url", "file": f"{name}.bin", "url": "http://127.0.0.1:9/x"}, options=narrow
        )
    return name


@pytest.mark.parametrize("name", TABLE_IV)
@pytest.mark.filterwarnings("ignore::svd_hub.hub.LicenceWarning")
def test_fine_tuning_is_one_changed_word(
    shelf: Shelf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    from svd_hub.training import recipe as recipes

    monkeypatch.setenv("SVD_HUB_ACCEPT_LICENCE", "ASU-Academic")
    init = hosted(shelf, tmp_path, name)
    changed: dict[str, Any] = {"task.init_args.network.init": init, "data.init_args.folder": str(tmp_path)}
    task, _ = recipes.read("resnet3d18_lidc", changed).make()
    x, label = torch.rand(2, 1, 32, 32, 32) * 255, torch.tensor([0, 1])
    optimiser = torch.optim.SGD(task.network.parameters(), lr=0.01)
    losses = []
    for _ in range(4):
        logits = task(x)
        assert logits.shape == (2, 2)
        loss = torch.nn.functional.cross_entropy(logits, label)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0]
    if name != "none":
        entry = task.network.entry
        assert entry.architecture == ("unet3d_genesis" if name in ("unet3d_genesis", "rubik_cube") else "resnet3d")
        saved = svd_hub.save(task.network.eval(), tmp_path / "mine.safetensors")
        again = svd_hub.load(saved)
        torch.testing.assert_close(again((x - task.mean) / task.std), task(x))
        assert again.entry.task == "classification"
