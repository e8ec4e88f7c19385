"""What an entry of the hub is: frozen data, and the few facts that follow from it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import OptionError, check_choice

if TYPE_CHECKING:
    from .inference import Inference
    from .preprocess import Preprocess

STATUSES = ("ours", "official", "converted", "derived", "recipe", "unavailable")
CHECKED = ("file", "layout", "never")
SOURCES = ("none", "bundled", "url", "gdrive", "hf", "folder", "mirror")
TASKS = ("backbone", "classification", "segmentation", "detection")
LOADABLE = ("ours", "official", "converted", "derived")
NOT_STATED = "not stated"
INFLATIONS = ("", "i3d", "acs", "mean_centre")


@dataclass(frozen=True, kw_only=True)
class Source:
    """Where the bytes of an entry are, and what they must hash to.

    Attributes:
        kind: one of `SOURCES`. "folder": a shared folder without a link per file, to be fetched by hand. "mirror": no
            link at all, the file is in release folders (`svd-hub publish --to`) that SVD_HUB_MIRROR names.
        file: the file's own name (also what a mirror or a by-hand copy must be called).
        url: the direct link of `url`, the folder's page of `folder`.
        repo, revision: of `hf`; the revision is a 40-hex commit.
        id: Google Drive's file id of `gdrive`.
        sha256: the full hash of the file, or the prefix that is all upstream states, or "" where nothing is known.
        size: bytes, 0 = not known.
        max_size: bytes at which a download is given up.
    """

    kind: str = "none"
    file: str = ""
    url: str = ""
    repo: str = ""
    revision: str = ""
    id: str = ""
    sha256: str = ""
    size: int = 0
    max_size: int = 4_000_000_000

    def __post_init__(self) -> None:
        check_choice("source.kind", self.kind, SOURCES)
        if self.file != Path(self.file).name:
            raise OptionError(f"source.file={self.file!r} is not allowed; allowed: a bare file name")


@dataclass(frozen=True, kw_only=True)
class Metric:
    """One measured number: its name and value, the data set and split, and the recipe or source that made it."""

    name: str
    value: float
    dataset: str
    split: str
    made_by: str


@dataclass(frozen=True, kw_only=True)
class Licence:
    """Terms that several entries share; what needs no consent may stay a bare SPDX name in an entry.

    Attributes:
        id: as the entries name it.
        consent: nothing is fetched under it before the user has agreed: `load(..., accept_licence=True)`.
        forbids: in words, what a user must not do.
    """

    id: str
    name: str
    url: str = ""
    consent: bool = False
    forbids: str = ""


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One name of the hub. See docs/architecture.md for what each key means.

    Attributes:
        options: the architecture's arguments that these weights need; a user never has to know them.
        stored: what is different in the upstream file: `load` adapts from it, by rules that the report names.
        open: options that upstream does not document: the upstream file itself decides them.
        inflation: how 2D kernels of the file become 3D ones, one of `svd_hub.inflation.INFLATIONS`, or "".
        backbone: the family of networks a user starts from; entries of one family fit the same code.
        parameters: of the network as it is loaded by default, 0 = not counted.
        terms: the licence as the catalogue describes it, None where only its name is known.
        preprocess_data: keyword arguments of `svd_hub.Preprocess`; read it through `.preprocess`.
        inference_data: keyword arguments of `svd_hub.inference.Inference`; read it through `.inference`.
        checked: has this project opened the real file ("file"), or only its documented layout? `checked_on`: when.
        overlay: the file that changed this entry, or "".
    """

    name: str
    summary: str
    architecture: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)
    stored: Mapping[str, Any] = field(default_factory=dict)
    open: tuple[str, ...] = ()
    inflation: str = ""
    backbone: str = ""
    parameters: int = 0
    task: str = "backbone"
    outputs: str = ""
    classes: tuple[str, ...] = ()
    status: str
    reason: str = ""
    origin: str = "svd_hub"
    source: Source = field(default_factory=Source)
    licence: str = NOT_STATED
    licence_url: str = ""
    terms: Licence | None = None
    rehost: bool = False
    trained_on: str = ""
    recipe: str = ""
    paper: str = ""
    citation: str = ""
    link: str = ""
    notes: tuple[str, ...] = ()
    preprocess_data: Mapping[str, Any] = field(default_factory=dict)
    inference_data: Mapping[str, Any] = field(default_factory=dict)
    metrics: tuple[Metric, ...] = ()
    checked: str = "never"
    checked_on: str = ""
    overlay: str = ""

    def __post_init__(self) -> None:
        check_choice("status", self.status, STATUSES)
        check_choice("checked", self.checked, CHECKED)
        check_choice("task", self.task, TASKS)
        check_choice("inflation", self.inflation, INFLATIONS)

    @property
    def loadable(self) -> bool:
        """True where weights exist somewhere."""
        return self.status in LOADABLE

    @property
    def consent(self) -> bool:
        """True where the licence asks for consent first, as non-commercial ones do."""
        return self.terms is not None and self.terms.consent

    @property
    def stored_options(self) -> dict[str, Any]:
        """The architecture's arguments for the network as it lies in the upstream file."""
        return {**self.options, **self.stored}

    @property
    def preprocess(self) -> Preprocess:
        """The `svd_hub.Preprocess` these weights were trained with.

        Raises:
            OptionError: the entry's data is not one's.
        """
        from .preprocess import Preprocess

        if not self.architecture:
            raise OptionError(f"{self.name!r} is listed only: it has no input rule. Next: svd-hub info {self.name}")
        try:
            return Preprocess(**self.preprocess_data)
        except (TypeError, ValueError) as error:
            raise OptionError(f"preprocess of {self.name!r}: {error}") from error

    @property
    def inference(self) -> Inference:
        """How these weights are run on whole volumes.

        Raises:
            OptionError: the entry's data is not one's.
        """
        from .inference import Inference

        return Inference.of(self.inference_data, self.name)

    def card(self) -> str:
        """Return the model card, Markdown, made from this entry alone."""
        from .card import render

        return render(self)
