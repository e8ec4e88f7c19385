"""serve_check(): a repository on a real server, held against the network it was made from.

First one request at a time: the network's shapes, then whole images. Then all at once: the image, many pieces, and
requests that are wrong. Then how fast it is. Whatever happens, the server is stopped.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import numpy as np

from ...errors import OptionError
from ...volume import Volume, read
from .. import artifact, verifying
from ..artifact import Artifact
from ..formats import AGREEMENT, TOLERANCES
from ..network import Network
from ..parity import Report as Parity
from ..parity import compare, measure_of
from .client import PROTOCOLS, Client, RefusedError
from .examples import Arrays, Bad, bad_requests, made_up, request_of, send
from .installation import find
from .report import ImageCase, Refusal, Report, Speed, Together
from .server import HOST, Server, running
from .wanted import PIECE, Wanted, agreement, relevant

REQUESTS = 50
SERIAL = 20  # requests one after another, for the latency
SOME = 4  # different images among the pieces
AT_ONCE = 8  # requests under way, for the throughput


def serve_check(
    folder: str | os.PathLike[str],
    *,
    volumes: Sequence[str | os.PathLike[str]] = (),
    model: Any = None,
    server: str | os.PathLike[str] | None = None,
    requests: int = REQUESTS,
    **options: Any,
) -> Report:
    """Start a real server on a repository, ask it, compare, measure, and stop it.

    Args:
        folder: what `export(..., "triton", folder)` wrote.
        volumes: CT or MR files or DICOM folders to send whole; none = a made-up one.
        model: the network, its name or file; None = by the name in the manifest, if it needs no download; without
            one, the answers are held against ONNX Runtime in this process.
        server: the folder of a tritonserver; see `installation.find`.
        requests: pieces that are sent at the same time.
        **options: of `svd_hub.load`, with a name or file.

    Raises:
        OptionError: an argument that is not allowed.
        CheckpointError: the folder is no repository, or the model is not the one that it was made from.
        IntegrityError: a file is not what it was.
        SvdHubError: there is no server, or it does not start.
        MissingExtraError: tritonclient is not installed.
    """
    found = artifact.read(folder)
    if found.format.name != "triton":
        raise OptionError(f"{folder} is {found.format.name}; allowed: triton. Next: svd-hub export ENTRY --to triton")
    if not 1 <= requests <= 1000:
        raise OptionError(f"requests={requests} is not allowed; allowed: 1 to 1000")
    artifact.check(found)
    installation = find(server)
    wanted = Wanted(found, *_network(found, model, options))
    images = _images(wanted, volumes)
    with running([found.folder], installation) as started:
        backend = "onnxruntime" if installation.has_onnxruntime else "the stand-in for its onnxruntime backend"
        return _Check(wanted, started, images).run(requests, backend)


def _network(found: Artifact, model: Any, options: Mapping[str, Any]) -> tuple[Network | None, str]:
    """Return the network to hold answers against, or why it is another runtime on the same file."""
    if found.manifest["images"] and model is None:
        return None, "measured on images when it was made, and requests are made up; see the manifest's parity"
    return verifying.original(found, model, options)


def _images(wanted: Wanted, volumes: Sequence[str | os.PathLike[str]]) -> list[tuple[Arrays, Arrays]]:
    """Return the requests for whole images, each with the right answer.

    Raises:
        OptionError: volumes for a network that reads none.
    """
    record = wanted.record
    if volumes and (record is None or record.preprocess.modality == "RGB"):
        raise OptionError(f"{wanted.found.manifest['entry']} reads no volumes. Next: leave --volume out")
    if record is None:
        return []
    if not volumes:
        made = made_up(record, _sides(wanted), seed=0)
        return [(made, wanted.of_image(made))]
    modality = record.preprocess.modality
    read_ones: list[Volume] = [read(path, modality=modality) for path in volumes]
    return [(request_of(volume, modality), wanted.of_image(volume)) for volume in read_ones]


def _sides(wanted: Wanted) -> tuple[int, int, int]:
    """Return the sides of a made-up image: one and a half windows and a bit, so that none fits evenly."""
    _, _, *typical = wanted.found.manifest["profile"]["typical"]
    d, h, w = (n + n // 2 + extra for n, extra in zip(typical, (1, 2, 3), strict=True))
    return d, h, w


class _Check:
    """One run against a server that answers."""

    def __init__(self, wanted: Wanted, server: Server, images: Sequence[tuple[Arrays, Arrays]]) -> None:
        self.wanted, self.server, self.images = wanted, server, images
        manifest = wanted.found.manifest
        self.kind, self.precision, self.norm = manifest["kind"], wanted.found.precision, manifest["norm"]
        self.most = manifest["profile"]["largest"][0] if "batch" in manifest["profile"]["dynamic"] else 0
        self.network, self.front = wanted.models["network"], wanted.models["image"]

    def run(self, requests: int, backend: str) -> Report:
        """Return what was found."""
        return Report(
            server=self._release(),
            backend=backend,
            reference=self.wanted.name,
            start_seconds=round(self.server.seconds, 2),
            network={protocol: self._parity(protocol) for protocol in PROTOCOLS},
            images=tuple(self._image(protocol, *one) for one in self.images for protocol in PROTOCOLS),
            together=self._together(requests),
            speed=self._speeds(),
            piece=self.wanted.piece(0).shape,
        )

    def _address(self, protocol: str) -> str:
        return f"{HOST}:{getattr(self.server, protocol)}"

    def _ask(self, protocol: str, model: str, arrays: Arrays, outputs: Sequence[str]) -> dict[str, np.ndarray]:
        with Client(protocol, self._address(protocol)) as client:
            return client.infer(model, arrays, outputs)

    def _release(self) -> str:
        with Client("http", self._address("http")) as client:
            return client.server()

    # ---- one at a time ---------------------------------------------------------------------------------------------

    def _parity(self, protocol: str) -> Parity:
        cases = []
        for volume in relevant(self.wanted.cases(), self.most):
            answer = self._ask(protocol, self.network, {"volume": volume}, self.wanted.found.outputs)
            right = self.wanted.of_network(volume)
            cases.append(compare(answer, right, kind=self.kind, precision=self.precision, volume=volume))
        return Parity(
            runner=f"Triton {protocol}",
            measure=measure_of(self.kind, cases),
            tolerance=TOLERANCES[self.norm, self.precision],
            least_agreement=AGREEMENT[self.precision],
            cases=tuple(cases),
        )

    def _image(self, protocol: str, request: Arrays, right: Arrays) -> ImageCase:
        started = time.perf_counter()
        answer = self._ask(protocol, self.front, request, list(right))
        seconds = time.perf_counter() - started
        agrees, says = agreement(answer, right)
        return ImageCase(
            size=tuple(next(iter(request.values())).shape),
            protocol=protocol,
            agreement=round(agrees, 6),
            least=AGREEMENT[self.precision],
            says=says,
            seconds=round(seconds, 3),
        )

    # ---- all at once -----------------------------------------------------------------------------------------------

    def _together(self, requests: int) -> Together:
        """Send images, pieces and wrong requests at the same time, each on a connection of its own."""
        pieces = self._pieces(requests)
        image = next(iter(self._small_images(1)), {})
        bad = bad_requests(self.wanted.models, self.wanted.piece(0), self.most, self.wanted.found.outputs[0], image)
        before = self._counts()
        started = time.perf_counter()
        with _threads(len(self.images) + len(pieces) + len(bad)) as pool:
            images = [pool.submit(self._image, "grpc", *one) for one in self.images]
            answers, refusals = [], []
            for number in range(max(len(pieces), len(bad))):  # one of each in turn
                protocol = PROTOCOLS[number % 2]
                answers += [pool.submit(piece, protocol) for piece in pieces[number : number + 1]]
                refusals += [pool.submit(self._refusal, one, protocol) for one in bad[number : number + 1]]
            wrong = [found for answer in answers if (found := answer.result())]
            after = self._counts()
            return Together(
                pieces=len(pieces),
                right=len(pieces) - len(wrong),
                wrong=tuple(wrong[:5]),
                images=tuple(image.result() for image in images),
                refusals=tuple(refusal.result() for refusal in refusals),
                batches=(after[0] - before[0], after[1] - before[1]),
                seconds=round(time.perf_counter() - started, 2),
                alive=self.server.alive(),
            )

    def _counts(self) -> tuple[int, int]:
        with Client("http", self._address("http")) as client:
            return client.executions(self.network)

    def _pieces(self, requests: int) -> list[Callable[[str], str]]:
        """Return requests that say what is wrong with their answer, "" for nothing; every other is a small image."""
        tensors = [self.wanted.piece(seed) for seed in range(SOME)]
        rights = [self.wanted.of_network(tensor) for tensor in tensors]
        images = self._small_images(SOME)
        seen = [self.wanted.of_image(image) for image in images]

        def network(number: int, protocol: str) -> str:
            volume, right = tensors[number], rights[number]
            answer = self._ask(protocol, self.network, {"volume": volume}, list(right))
            case = compare(answer, right, kind=self.kind, precision=self.precision, volume=volume)
            enough = case.agreement is None or case.agreement >= AGREEMENT[self.precision]
            fine = case.finite and case.error <= TOLERANCES[self.norm, self.precision] and enough
            return "" if fine else f"a piece over {protocol}: error {case.error:.1e}, agreement {case.agreement}"

        def image(number: int, protocol: str) -> str:
            case = self._image(protocol, images[number], seen[number])
            return "" if case.passed else f"a small image over {protocol}: {case.says}"

        def one(number: int) -> Callable[[str], str]:
            ask = image if images and number % 2 else network
            return lambda protocol: _told(lambda: ask(number // 2 % SOME, protocol))

        return [one(number) for number in range(requests)]

    def _small_images(self, count: int) -> list[dict[str, np.ndarray]]:
        record = self.wanted.record
        return [] if record is None else [made_up(record, (PIECE, PIECE, PIECE), seed=seed) for seed in range(count)]

    def _refusal(self, bad: Bad, protocol: str) -> Refusal:
        protocol = "http" if bad.declared else protocol
        facts = {"kind": bad.kind, "says": bad.says, "protocol": protocol}
        try:
            send(bad, protocol, self._address(protocol))
        except RefusedError as refused:
            return Refusal(**facts, status=refused.status, reason=refused.reason, passed=refused.is_clients)
        except OSError as error:  # a connection that breaks is a server that fell
            return Refusal(**facts, status="", reason=type(error).__name__, passed=False)
        return Refusal(**facts, status="", reason="answered like a good one", passed=False)

    # ---- how fast --------------------------------------------------------------------------------------------------

    def _speeds(self) -> tuple[Speed, ...]:
        piece = {"volume": self.wanted.piece(0)}
        return tuple(self._speed(protocol, at_once, piece) for protocol in PROTOCOLS for at_once in (1, AT_ONCE))

    def _speed(self, protocol: str, at_once: int, piece: Arrays) -> Speed:
        share, ready = max(2, SERIAL // at_once), threading.Barrier(at_once)

        def ask(_: int) -> list[float]:
            """Return when the requests of one connection began, and when the last was answered."""
            with Client(protocol, self._address(protocol)) as client:
                client.infer(self.network, piece, self.wanted.found.outputs)  # it takes the connection's own time
                ready.wait()
                times = [time.perf_counter()]
                for _ in range(share):
                    client.infer(self.network, piece, self.wanted.found.outputs)
                    times.append(time.perf_counter())
            return times

        with _threads(at_once) as pool:
            times = np.array(list(pool.map(ask, range(at_once))))
        median, late = np.percentile(np.diff(times), [50, 95]) * 1000
        return Speed(
            protocol=protocol,
            at_once=at_once,
            requests=at_once * share,
            median_ms=round(float(median), 2),
            p95_ms=round(float(late), 2),
            per_second=round(at_once * share / float(times.max() - times.min()), 2),
        )


@contextmanager
def _threads(count: int) -> Iterator[ThreadPoolExecutor]:
    """Give threads that nobody waits for when something ends the work: the server is stopped, which ends them."""
    pool = ThreadPoolExecutor(count)
    try:
        yield pool
    except BaseException:
        pool.shutdown(wait=False, cancel_futures=True)
        raise
    pool.shutdown()


def _told(ask: Callable[[], str]) -> str:
    """Return what is wrong with an answer, or why there is none."""
    try:
        return ask()
    except (RefusedError, OSError) as error:
        return f"no answer: {error}"
