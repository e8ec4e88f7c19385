"""Every entry with a link, fetched from a server that has its real path: repository and commit, record, file id.

The files are the documented layouts with seeded values, narrow; an overlay of the catalogue names this server, and the
hash and size of each file. All that happens in processes of their own, whose environment is set before they start.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import subprocess
import sys
import zlib
from collections import OrderedDict
from typing import Any
from urllib.parse import urlsplit

import helpers_genesis
import pytest
import servers
import torch
import upstream_layouts as upstream
from helpers_detection import theirs
from safetensors.torch import save
from synthetic import Shelf, official

from svd_hub import skeleton
from svd_hub.catalog import Entry, all_entries

LINKED = {name: entry for name, entry in all_entries().items() if entry.source.kind in ("url", "gdrive", "hf")}
DRIVE = "https://drive.usercontent.google.com"
CHILD = """
import json, socket, sys
import svd_hub
from svd_hub import transport

real, base = transport.gdrive_url, sys.argv[1]
transport.gdrive_url = lambda file_id: real(file_id).replace("https://drive.usercontent.google.com", base)
told, mode, names = {}, sys.argv[2], sys.argv[3:]
if mode == "cached":
    def refuse(event, args):
        if event.startswith("socket."):
            raise SystemExit(f"a socket was touched: {event}")
    sys.addaudithook(refuse)
for name in names:
    model, report = svd_hub.load(name, accept_licence=True, return_report=True)
    total = sum(float(t.double().abs().sum()) for t in model.state_dict().values())
    told[name] = [report.source_sha256, report.sha256, report.checked, len(report.missing), report.source, total]
print(json.dumps(told))
"""


def seeded(shapes: Any, entry: Entry) -> OrderedDict[str, torch.Tensor]:
    """Other values for another file, the same for one file of two entries."""
    return upstream.values(
        shapes, seed=zlib.crc32(f"{entry.source.repo}{entry.source.url}{entry.source.file}".encode())
    )


def monai_state(entry: Entry, network: str, **options: Any) -> OrderedDict[str, torch.Tensor]:
    """MONAI's own network of that name, with seeded values."""
    module = pytest.importorskip(f"monai.networks.nets.{'segresnet' if network == 'SegResNet' else 'segresnet_ds'}")
    state = getattr(module, network)(spatial_dims=3, init_filters=8, **options).state_dict()
    return seeded({name: tuple(t.shape) for name, t in state.items()}, entry)


def genesis_file(entry: Entry, module: str, *, head: bool = True) -> OrderedDict[str, torch.Tensor]:
    shapes = helpers_genesis.documented_shapes(width=2)
    wanted = {name: shape for name, shape in shapes.items() if head or not name.startswith("out_tr")}
    return upstream.prefixed(seeded(wanted, entry), module)


def file_of(entry: Entry) -> tuple[bytes, dict[str, Any]]:
    """Return the bytes of an entry's upstream file, narrow, and the options that say so."""
    depth, narrow = entry.options.get("depth", 0), {"width": 4}
    if entry.origin == "medicalnet":
        tensors = upstream.prefixed(seeded(upstream.medicalnet(depth, width=4), entry), "module.")
        return upstream.saved({"state_dict": tensors}, legacy=True), narrow
    if entry.origin == "imagenet_2d" and entry.architecture == "densenet3d":
        return save(seeded(upstream.densenet(), entry)), {}
    if entry.origin == "imagenet_2d":
        return save(seeded(upstream.resnet(depth, width=4, stem=(7, 7), classes=1000), entry)), narrow
    if entry.origin == "torchvision_video":
        return upstream.saved(seeded(upstream.torchvision_video(width=4), entry)), narrow
    if entry.origin == "fmcib":
        trunk = seeded(upstream.resnet(50, width=4, channels=1, bias=True), entry)
        return upstream.saved({"trunk_state_dict": trunk}), narrow
    if entry.origin == "merlin":
        return upstream.saved(seeded(upstream.merlin_main(width=4), entry)), narrow
    if entry.origin == "genesis":
        return upstream.saved({"epoch": 1, "state_dict": genesis_file(entry, "module.")}), {"width": 2}
    if entry.name == "unet3d_suprem":
        return upstream.saved({"net": genesis_file(entry, "module.backbone.", head=False), "epoch": 1}), {"width": 2}
    if entry.origin == "suprem":
        state = monai_state(entry, "SegResNet", blocks_down=(1, 2, 2, 4), blocks_up=(1, 1, 1), out_channels=32)
        return upstream.saved({"net": upstream.prefixed(state, "module.")}), {"init_filters": 8}
    if entry.origin == "ctfm" and entry.architecture == "segresencoder":
        return save(monai_state(entry, "SegResEncoder", blocks_down=(1, 2, 2, 4, 4))), {"init_filters": 8}
    if entry.origin == "ctfm":
        heads = {"out_channels": entry.options["num_classes"], "dsdepth": entry.options["dsdepth"]}
        return save(monai_state(entry, "SegResNetDS", blocks_down=(1, 2, 2, 4, 4), **heads)), {"init_filters": 8}
    if entry.origin in ("svdnet_coco", "svdnet_detector"):  # one file, of which two entries take their parts
        detector = all_entries()["mp3d63_coco_detector"]
        narrow = {"encoder_options": {"variant": "63", "width": 4}, "channels": 8, "head_channels": 8}
        shapes = skeleton.shapes(skeleton.skeleton("faster_rcnn3d", {**detector.options, **narrow}).state_dict())
        file = {theirs(name, version=1): tensor for name, tensor in seeded(shapes, entry).items()}
        return upstream.saved({"state_dict": file}), narrow if entry.origin == "svdnet_detector" else {"width": 4}
    return official(width=8), {"width": 8}


def path_of(entry: Entry) -> str:
    """Return the path and query under which the real host has the file."""
    if entry.source.kind == "gdrive":
        return f"/download?id={entry.source.id}&export=download&confirm=t"
    parts = urlsplit(entry.source.url)
    return parts.path + (f"?{parts.query}" if parts.query else "")


@pytest.fixture
def hosted(shelf: Shelf, server: servers.Server, monkeypatch: pytest.MonkeyPatch) -> dict[str, bytes]:
    """Every linked entry's file on one server, each under its own path; returns name -> bytes."""
    bodies = {}
    for name, entry in LINKED.items():
        with contextlib.suppress(pytest.skip.Exception):
            body, narrow = file_of(entry)
            source = {key: getattr(entry.source, key) for key in ("kind", "repo", "revision", "url", "id", "file")}
            if entry.source.kind == "hf":
                server.add_hf(entry.source.repo, entry.source.revision, entry.source.file, body)
            else:
                server.add(path_of(entry).split("?")[0], servers.ok(body))
                source["url"] = server.url(path_of(entry))
            bodies[name] = body
            shelf.put(name, body, source=source, options=narrow)
    if drive := [name for name in bodies if LINKED[name].source.kind == "gdrive"]:
        by_id = {LINKED[name].source.id: bodies[name] for name in drive}

        def play(handler: servers.Handler) -> None:
            body = by_id[handler.path.split("id=")[1].split("&")[0]]
            handler.send(200, {"Content-Length": str(len(body))}, body)

        server.add("/download", play)
    monkeypatch.delenv("SVD_HUB_MIRROR")
    monkeypatch.setenv("HF_ENDPOINT", server.base)
    monkeypatch.setenv("SVD_HUB_TEST_BASE", server.base)
    return bodies


def loaded(base: str, mode: str, names: list[str], **environment: str) -> dict[str, list[Any]]:
    """Load the names in a process of their own and return what it told of each."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", CHILD, base, mode, *names],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


def test_every_kind_of_link_is_here() -> None:
    assert {entry.source.kind for entry in LINKED.values()} == {"url", "gdrive", "hf"}
    hosts = {urlsplit(entry.source.url).netloc for entry in LINKED.values() if entry.source.kind == "url"}
    assert {"zenodo.org", "download.pytorch.org", "huggingface.co"} <= hosts
    assert len(LINKED) >= 30


@pytest.mark.parametrize("xet", ["0", "1"], ids=["as it comes", "HF_HUB_DISABLE_XET"])
def test_each_link_loads_once_and_then_from_the_cache(
    hosted: dict[str, bytes], server: servers.Server, xet: str
) -> None:
    kinds = ("url", "gdrive", "hf") if xet == "0" else ("hf",)
    names = [name for name in hosted if LINKED[name].source.kind in kinds]
    environment = {"HF_HUB_DISABLE_XET": "1"} if xet == "1" else {}
    first = loaded(server.base, "fetch", names, **environment)
    asked = [seen.path for seen in server.gets()]
    for name in names:
        digest = hashlib.sha256(hosted[name]).hexdigest()
        source_sha256, _, checked, missing, _, total = first[name]
        assert (source_sha256, checked, missing) == (digest, True, 0), name
        assert total > 0
        source = LINKED[name].source
        path = (
            f"/{source.repo}/resolve/{source.revision}/{source.file}" if source.kind == "hf" else path_of(LINKED[name])
        )
        assert path in asked, name
    server.seen.clear()
    again = loaded(server.base, "cached", names, **environment)
    assert again == first
    assert not server.seen, "a cached entry asked the server"


def test_without_the_overlay_every_pinned_entry_refuses_these_files(
    hosted: dict[str, bytes], shelf: Shelf, monkeypatch: pytest.MonkeyPatch
) -> None:
    from svd_hub import store
    from svd_hub.errors import IntegrityError

    monkeypatch.delenv("SVD_HUB_CATALOG")
    pinned = [name for name in hosted if LINKED[name].source.sha256]
    assert len(pinned) > 25
    for name in pinned:
        file = shelf.mirror / LINKED[name].source.file
        file.write_bytes(hosted[name])
        with pytest.raises(IntegrityError, match=LINKED[name].source.sha256[:8]):
            store.examine(LINKED[name], file)
