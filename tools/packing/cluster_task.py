"""One shard on a worker of a Dask cluster: what runs there, and what it tells the client meanwhile.

A worker writes into a folder that belongs to one client (`.build/cluster-…`), never beside the finished shards;
only that client, which holds the lock of the output, moves them there. So a worker that outlives its client (a
lost connection, a killed client) spoils nothing: it sees that the folder is gone, and stops.

What a worker tells are events of a topic: cheap, in order, and the last one of a shard reaches the client before
the scheduler calls the task finished. A shard may be done twice (its worker was lost midway), so every event
holds sums since the shard's beginning, which the client can compare with what it knows.
"""

from __future__ import annotations

import hashlib
import json
import pickle
import resource
import socket
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import astuple, dataclass, field
from importlib.resources import files
from pathlib import Path
from types import TracebackType
from typing import Any

from distributed import get_worker

from ... import __version__
from ...shards import AlexshardError
from .cluster_folder import TOKEN_NAME
from .decode import decoder_versions
from .plan import ShardPlan
from .shard import pack_shard, record_path
from .sources import Container, Refusal
from .workers import Job

TELL_EVERY_S = 1.0  # a thousand workers are a thousand events a second, which a scheduler takes easily


@dataclass(frozen=True, slots=True)
class Brief:
    """What all shards of one build on a cluster have in common."""

    job: Job  # its folder is the client's own; all paths are absolute
    versions: dict[str, str]
    token: str  # of the client, unique
    topic: str


@dataclass(frozen=True, slots=True)
class Told:
    """One event of a shard that is being packed."""

    shard: str
    worker: str  # address
    images: int  # looked at since the shard was begun
    first: int  # number of refusals before the ones told here
    refusals: tuple[Refusal, ...] = ()
    files: tuple[str, ...] | None = None  # at the end: what lies in the client's folder, the record last
    error: AlexshardError | None = None  # that ends the build
    cpu_s: float = 0.0  # that the shard took
    peak_bytes: int = 0  # memory of the worker's process

    def message(self) -> dict[str, Any]:
        """Plain values: a scheduler need not know our classes, and names in archives need not be UTF-8."""
        return {
            "shard": self.shard,
            "worker": self.worker,
            "images": self.images,
            "first": self.first,
            "refusals": json.dumps([astuple(refusal) for refusal in self.refusals]),
            "files": None if self.files is None else list(self.files),
            "error": None if self.error is None else pickle.dumps(self.error),
            "cpu_s": self.cpu_s,
            "peak_bytes": self.peak_bytes,
        }

    @classmethod
    def parse(cls, message: dict[str, Any]) -> Told:
        fields = dict(message)
        fields["refusals"] = tuple(Refusal(*values) for values in json.loads(message["refusals"]))
        fields["files"] = None if message["files"] is None else tuple(message["files"])
        fields["error"] = None if message["error"] is None else pickle.loads(message["error"])
        return cls(**fields)


@dataclass(slots=True)
class Counted:
    """What of one shard has been told, each image and each refusal once, however often the shard is begun anew.

    That works since a shard's images come in one order, whoever packs it.
    """

    images: int = 0
    refusals: int = 0

    def news(self, told: Told) -> tuple[int, tuple[Refusal, ...]]:
        """Images and refusals of an event that no event before has told; from now on they are counted."""
        images = max(told.images - self.images, 0)
        refusals = told.refusals[self.refusals - told.first :] if told.first <= self.refusals else ()
        self.images += images
        self.refusals += len(refusals)
        return images, refusals


def versions() -> dict[str, str]:
    """Everything that must be equal wherever shards of one set are packed."""
    return {"alexshard": __version__, "code of packing": _code(), **decoder_versions()}


def _code() -> str:
    """The code that packs, in one number: two clones of one version may differ."""
    folder = files(__package__)
    modules = sorted((file for file in folder.iterdir() if file.name.endswith(".py")), key=lambda file: file.name)
    return hashlib.sha256(b"".join(file.read_bytes() for file in modules)).hexdigest()[:12]


def host_and_versions() -> tuple[str, dict[str, str]]:
    return socket.gethostname(), versions()


def out_of_sight(brief: Brief) -> str | None:
    """What of source and output this machine does not see as the client does, in words; None: it sees all."""
    folder = brief.job.folder
    try:
        if (folder / TOKEN_NAME).read_text(encoding="ascii") != brief.token:
            return f"the output {folder.parent} is another folder there"
        probe = folder / f"probe-{socket.gethostname()}-{threading.get_ident()}-{brief.token}"
        probe.touch()
        probe.unlink()
    except OSError as error:
        return f"it cannot write to the output: {folder}: {error.strerror or error}"
    for path, container in _places(brief.job.containers).items():
        try:
            if not container.is_folder:
                if Container.state_of(path) != container.state:
                    return f"the source {path} is another file there, or was changed"
            elif isinstance(path, Path):  # and not of a store
                next(path.iterdir(), None)
        except OSError as error:
            return f"it cannot read the source: {path}: {error.strerror or error}"
        except AlexshardError as error:
            return f"it cannot read the source: {error.what}"
    return None


def _places(containers: list[Container]) -> dict[Path, Container]:
    """Every archive (inner ones share a file), and of the folders the first."""
    places = {container.path: container for container in containers if not container.is_folder}
    return places | {container.path: container for container in containers if container.is_folder and not places}


_seen: set[str] = set()  # tokens of the clients whose orders this process was found fit for


def pack(plan_bytes: bytes, brief_bytes: bytes) -> None:
    """Pack one shard and tell about it; the task that a cluster runs.

    Errors that another try would meet again are told; others leave the task, which the scheduler then retries.
    """
    plan: ShardPlan = pickle.loads(plan_bytes)
    brief: Brief = pickle.loads(brief_bytes)
    folder, name = brief.job.folder, str(plan.name)
    with _Teller(brief, name) as teller:
        try:
            _check_fitness(brief, teller.address)
            pack_shard(plan, brief.job.containers, brief.job.image_format, folder, on_image=teller.on_image)
        except _ClientGone:
            # Nobody hears this, unless the folder is gone for this worker alone.
            teller.end(error=not_visible(f"worker {teller.address}", f"{folder} is gone"))
            return
        except AlexshardError as error:
            teller.end(error=error)
            return
        record = record_path(folder, plan.name)
        others = [record.with_suffix(suffix) for suffix in (".tar", ".idx", ".npz")]
        teller.end(files=(*(path.name for path in others if path.exists()), record.name))


def _check_fitness(brief: Brief, address: str) -> None:
    """Workers that were there at the start have been asked already; one that joined later has not.

    Raises:
        AlexshardError: it is of another version, or does not see what the client sees.
    """
    if brief.token in _seen:
        return
    where = f"worker {address} ({socket.gethostname()}), which joined later"
    if versions() != brief.versions:
        raise other_versions(where, versions(), brief.versions)
    if (blind := out_of_sight(brief)) is not None:
        raise not_visible(where, blind)
    _seen.add(brief.token)


def other_versions(where: str, theirs: dict[str, str], ours: dict[str, str]) -> AlexshardError:
    names = [name for name in {**ours, **theirs} if ours.get(name) != theirs.get(name)]
    differences = "; ".join(f"{name} {theirs.get(name)} there, {ours.get(name)} here" for name in names)
    return AlexshardError(
        f"a worker has other versions: {differences}",
        where=where,
        why="other versions make other pixels, so the set would depend on who packed what",
        remedy="give scheduler, workers and this command the same environment",
    )


def not_visible(where: str, what: str) -> AlexshardError:
    return AlexshardError(
        f"a worker does not see what this machine sees: {what}",
        where=where,
        why="every worker reads the source and writes the shards itself, under the same paths as here",
        remedy="mount both there under the same paths, or start workers only where they are",
    )


class _ClientGone(Exception):
    """Nobody waits for this shard any more."""


@dataclass(slots=True)
class _Teller:
    """Tells the client how far a shard is, from a thread of its own: where it hangs is told exactly, too."""

    brief: Brief
    shard: str
    address: str = ""
    images: int = 0
    refusals: list[Refusal] = field(default_factory=list)
    gone: bool = False
    _began_s: float = field(default_factory=time.thread_time)  # decoding and encoding stay in the task's thread
    _told: tuple[int, int] = (-1, 0)
    _log: Callable[[str, Any], None] = field(init=False)
    _stop: threading.Event = field(default_factory=threading.Event)
    _thread: threading.Thread = field(init=False)

    def __enter__(self) -> _Teller:
        worker = get_worker()
        self.address, self._log = worker.address, worker.log_event
        self._tell()
        self._thread = threading.Thread(target=self._tell_on, name=f"tells about {self.shard}", daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._quiet()

    def on_image(self, refusal: Refusal | None) -> None:
        if self.gone:
            raise _ClientGone
        if refusal is not None:
            self.refusals.append(refusal)
        self.images += 1

    def end(self, *, files: tuple[str, ...] | None = None, error: AlexshardError | None = None) -> None:
        """Tell the last about the shard."""
        self._quiet()
        self._tell(files=files, error=error)

    def _quiet(self) -> None:
        self._stop.set()
        self._thread.join()

    def _tell_on(self) -> None:
        token = self.brief.job.folder / TOKEN_NAME
        while not self._stop.wait(TELL_EVERY_S):
            try:
                token.stat()
            except FileNotFoundError:
                self.gone = True
            except OSError:
                pass  # a network disk that stumbles: what is read and written there will tell
            if self._told != (self.images, len(self.refusals)):
                self._tell()

    def _tell(self, *, files: tuple[str, ...] | None = None, error: AlexshardError | None = None) -> None:
        first, images, end = self._told[1], self.images, len(self.refusals)
        refusals = tuple(self.refusals[first:end])
        self._told = images, end
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
        cpu_s = 0.0 if files is None else time.thread_time() - self._began_s
        told = Told(self.shard, self.address, images, first, refusals, files, error, cpu_s, peak)
        self._log(self.brief.topic, told.message())
