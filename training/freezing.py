"""Parts of a backbone that are not trained: their values stay, and their norms use the statistics they have."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from ..errors import OptionError

STATISTICS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)


def parts(backbone: nn.Module) -> dict[str, list[nn.Module]]:
    """Return what can be frozen: "stem" (all before the first stage), then each stage by its name.

    A network without stages of the name `layerN` has its own children for parts, those with parameters.
    """
    children = {name: child for name, child in backbone.named_children() if next(child.parameters(), None) is not None}
    stages = {name: [child] for name, child in children.items() if name.startswith("layer")}
    if not stages:
        return {name: [child] for name, child in children.items()}
    names = list(children)
    first = names.index(next(iter(stages)))
    return {"stem": [children[name] for name in names[:first]], **stages}


def freeze(backbone: nn.Module, names: Sequence[str]) -> list[nn.Module]:
    """Take the gradients off parts of a backbone and return their modules, for `hold`.

    Raises:
        OptionError: a name that is no part.
    """
    known = parts(backbone)
    if unknown := [name for name in names if name not in known]:
        raise OptionError(f"freeze={list(names)}: {unknown} are not allowed; allowed: {', '.join(known)}")
    frozen = [module for name in names for module in known[name]]
    for module in frozen:
        module.requires_grad_(False)
    return frozen


def statistics_of(backbone: nn.Module) -> list[nn.Module]:
    """Return the batch norms of a backbone, for `hold`; group norms keep no statistics."""
    return [module for module in backbone.modules() if isinstance(module, STATISTICS)]


def hold(modules: Sequence[nn.Module]) -> None:
    """Put modules into evaluation, whatever the network around them does; to be called behind each `train()`."""
    for module in modules:
        module.eval()
