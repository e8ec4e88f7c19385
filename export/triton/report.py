"""What a check of a server found, as lines for people and as JSON. Nothing in it names a path or a host."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from ..parity import Report as Parity


@dataclass(frozen=True, kw_only=True)
class ImageCase:
    """One whole image.

    Attributes:
        size: (D, H, W), or (H, W, 3).
        protocol: it went over.
        agreement: 1 where the answer is the right one.
        least: what is allowed.
        says: the same in words.
        seconds: from request to answer.
    """

    size: tuple[int, ...]
    protocol: str
    agreement: float
    least: float
    says: str
    seconds: float

    @property
    def passed(self) -> bool:
        """Whether it agrees as far as is asked."""
        return self.agreement >= self.least


@dataclass(frozen=True, kw_only=True)
class Refusal:
    """One request that is wrong.

    Attributes:
        kind, says: what is wrong.
        protocol: it went over.
        status: of the answer; "" where it was answered like a good one, or not at all.
        reason: what the server said.
        passed: it was refused as the client's fault.
    """

    kind: str
    says: str
    protocol: str
    status: str
    reason: str
    passed: bool


@dataclass(frozen=True, kw_only=True)
class Together:
    """What came of everything at once.

    Attributes:
        pieces: small requests, to the network and to the image model.
        right: of them, those with the right answer.
        wrong: what the others got, the first few.
        images: whole images among them.
        refusals: requests that are wrong.
        batches: (inputs, runs) of the network meanwhile: how many shared a run.
        seconds: until all were answered.
        alive: the server is as ready as before.
    """

    pieces: int
    right: int
    wrong: tuple[str, ...]
    images: tuple[ImageCase, ...]
    refusals: tuple[Refusal, ...]
    batches: tuple[int, int]
    seconds: float
    alive: bool

    @property
    def passed(self) -> bool:
        """All good ones are answered rightly, all others refused, and the server goes on."""
        images, refusals = (all(one.passed for one in cases) for cases in (self.images, self.refusals))
        return images and refusals and self.right == self.pieces and self.alive


@dataclass(frozen=True, kw_only=True)
class Speed:
    """Latency or throughput of the network's small requests.

    Attributes:
        protocol: they went over.
        at_once: requests under way at a time.
        requests: in all.
        median_ms, p95_ms: from request to answer.
        per_second: requests answered.
    """

    protocol: str
    at_once: int
    requests: int
    median_ms: float
    p95_ms: float
    per_second: float


@dataclass(frozen=True, kw_only=True)
class Report:
    """A whole check.

    Attributes:
        server: its release.
        backend: what computed: "onnxruntime", or the stand-in for it.
        reference: what the answers were held against.
        start_seconds: until it was ready.
        network: protocol -> parity of the network.
        images, together, speed: see the classes.
        piece: the shape of the small requests.
    """

    server: str
    backend: str
    reference: str
    start_seconds: float
    network: dict[str, Parity]
    images: tuple[ImageCase, ...]
    together: Together
    speed: tuple[Speed, ...]
    piece: tuple[int, ...] = field(default=())

    @property
    def passed(self) -> bool:
        """Everything is as it should be."""
        parity = all(report.passed for report in self.network.values())
        return parity and all(case.passed for case in self.images) and self.together.passed

    def data(self) -> dict[str, Any]:
        """Return it as JSON values."""
        found = asdict(self)
        found["network"] = {protocol: report.data() for protocol, report in self.network.items()}
        return {**found, "passed": self.passed}

    def lines(self) -> list[str]:
        """Return it for people."""
        found = [
            f"{self.server}, ready after {self.start_seconds:.1f} s, {self.backend}; held against {self.reference}"
        ]
        for protocol, report in self.network.items():
            first, *rest = report.lines()
            found += [first.replace("parity by", f"the network over {protocol}, by", 1), *rest]
        found += [f"an image over {_image(case)}" for case in self.images]
        return [*found, *self._together(), *self._speed()]

    def _together(self) -> list[str]:
        one, told = self.together, "goes on" if self.together.alive else "is GONE"
        inputs, runs = one.batches
        refused = sum(case.passed for case in one.refusals)
        found = [
            f"all at once, {one.seconds:.1f} s: {one.right} of {one.pieces} pieces right ({inputs} inputs in {runs} "
            f"runs), {refused} of {len(one.refusals)} wrong requests refused, the server {told}"
        ]
        found += [f"  meanwhile over {_image(case)}" for case in one.images]
        found += [f"  FAILED: {what}" for what in one.wrong]
        for case in one.refusals:
            mark = "" if case.passed else "FAILED: "
            found.append(f"  {mark}{case.kind}, {case.says}: {case.status or 'no refusal'} {case.reason}"[:160])
        return found

    def _speed(self) -> list[str]:
        found = [f"small requests, {'x'.join(map(str, self.piece))}:  at once  median ms  95% ms  a second"]
        for one in self.speed:
            numbers = f"{one.median_ms:>9.1f}  {one.p95_ms:>6.1f}  {one.per_second:>8.1f}"
            found.append(f"  {one.protocol:>29}  {one.at_once:>7}  {numbers}")
        return found


def _image(case: ImageCase) -> str:
    mark = "ok" if case.passed else "FAILED"
    return f"{case.protocol}, {'x'.join(map(str, case.size))}: {case.says}, {case.seconds:.2f} s  {mark}"
