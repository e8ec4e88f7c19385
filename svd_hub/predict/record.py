"""What belongs to a network that predicts, without the network: what has to be known of one that runs elsewhere."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from ..errors import OptionError
from ..inference import Inference
from ..preprocess import Preprocess
from .checks import TASKS, class_names, task_of


@dataclass(frozen=True, kw_only=True)
class Record:
    """Everything of a network that predicts but its numbers.

    Attributes:
        name: of the entry or file.
        task: one of `checks.TASKS`.
        classes: names of the labels.
        preprocess, inference: the rules that belong to the weights.
        weights_sha256: which weights they are, "" where nobody said.
        status, licence: of the entry.
    """

    name: str
    task: str
    classes: tuple[str, ...]
    preprocess: Preprocess
    inference: Inference
    weights_sha256: str = ""
    status: str = ""
    licence: str = ""

    @classmethod
    def of_model(cls, model: Any, *, weights_sha256: str = "") -> Self:
        """Return the record of a loaded network.

        Raises:
            OptionError: it has no task that predict does; says why.
        """
        task = task_of(model)
        return cls(
            name=model.entry.name,
            task=task,
            classes=class_names(model, task),
            preprocess=model.preprocess,
            inference=model.inference,
            weights_sha256=weights_sha256,
            status=model.entry.status,
            licence=model.entry.licence,
        )

    @classmethod
    def of(cls, data: Mapping[str, Any]) -> Self:
        """Return the record that `data` was called of.

        Raises:
            OptionError: it is none, or one of another release.
        """
        try:
            found = cls(
                name=str(data["name"]),
                task=str(data["task"]),
                classes=tuple(map(str, data["classes"])),
                preprocess=Preprocess(**data["preprocess"]),
                inference=Inference(**data["inference"]),
                weights_sha256=str(data["weights_sha256"]),
                status=str(data["status"]),
                licence=str(data["licence"]),
            )
        except (KeyError, TypeError, OptionError) as error:
            raise OptionError(f"the record of a network is damaged or of another svd_hub: {error}") from error
        if found.task not in TASKS:
            raise OptionError(f"task={found.task!r} of {found.name!r} is not allowed; allowed: {', '.join(TASKS)}")
        return found

    def data(self) -> dict[str, Any]:
        """Return it as JSON values."""
        return {**dataclasses.asdict(self), "classes": list(self.classes)}
