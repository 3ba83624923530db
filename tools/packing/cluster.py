"""Shards by the workers of a Dask cluster: the same plan, the same work on each shard, the same bytes.

Dask finds a worker for every shard, finds another where one is lost, and carries what workers tell. Ours is to
hand out shards a few at a time, to count what is told, and to move what is finished from this client's own
folder (see `cluster_task`) to the finished shards.
"""

from __future__ import annotations

import logging
import os
import pickle
import queue
import re
import secrets
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from distributed import Client, Future, KilledWorker

from ...shards import AlexshardError, WrongCall
from .build import Usage
from .cluster_folder import move, own_folder
from .cluster_task import (
    Brief,
    Counted,
    Told,
    host_and_versions,
    not_visible,
    other_versions,
    out_of_sight,
    pack,
    versions,
)
from .plan import ShardPlan
from .shard import source_order
from .workers import Job, OnProgress, OnShard

RETRIES = 2  # of a shard that failed for a reason which another try may not meet
LOOK_EVERY_S = 2.0  # at the scheduler: who is there, and who has fallen silent
_AHEAD = 2  # shards that wait at the scheduler beside one for each thread, so that no worker waits for us
_ADDRESS = re.compile(r"(tcp|tls|ws|wss|ucx)://(\[[0-9A-Fa-f:.]+\]|[^\s:/\[\]]+):[0-9]{1,5}")


@contextmanager
def connected(address: str, *, hung_after: float, on_wait: Callable[[str], object]) -> Iterator[Cluster]:
    """A cluster with at least one worker, all of which are of our versions.

    Args:
        address: of the scheduler, as tcp://host:8786.
        hung_after: seconds without any worker, or without an image of a shard, that end the work.
        on_wait: called with a sentence where there is no worker yet.

    Raises:
        WrongCall: this is no address.
        AlexshardError: the scheduler or its workers are not there, or of other versions.
    """
    if not _ADDRESS.fullmatch(address):
        raise WrongCall(
            f"--scheduler {address!r} is no address of a Dask scheduler",
            remedy="for example --scheduler tcp://host:8786",
        )
    # What Dask's client has to say about lost connections is said by us, once.
    logging.getLogger("distributed").setLevel(logging.CRITICAL)
    for name in ("client", "core", "comm", "batched", "utils"):
        logging.getLogger(f"distributed.{name}").setLevel(logging.CRITICAL)
    try:
        client = Client(address, set_as_default=False, name="alexshard")
    except (OSError, ImportError) as error:
        raise AlexshardError(
            f"no Dask scheduler answers: {error}",
            where=address,
            why="it hands the shards to the workers",
            remedy="start one (dask scheduler) and some workers (dask worker), or correct --scheduler",
        ) from None
    try:
        cluster = Cluster(client, address, hung_after)
        if not cluster.num_threads:
            on_wait(f"{cluster}; waiting for workers, {hung_after:g} s at most")
        cluster.wait_for_workers()
        cluster.check_versions()
        yield cluster
    finally:
        with suppress(Exception):  # whatever a scheduler that went away leaves behind
            client.close(timeout=5)


class Cluster:
    """A connection to a scheduler.

    Attributes:
        usage: what the workers have taken for the shards that they have finished.
    """

    def __init__(self, client: Client, address: str, hung_after: float) -> None:
        self.usage = Usage()
        self._client, self.address, self.hung_after = client, address, hung_after

    def __str__(self) -> str:
        info = self._info()
        workers, threads = info["n_workers"], info["total_threads"]
        return (
            f"cluster {self.address}: {workers:,} worker{'s' * (workers != 1)}, "
            f"{threads:,} thread{'s' * (threads != 1)}; dashboard {self._client.dashboard_link}"
        )

    def wait_for_workers(self) -> None:
        """Wait until there is a worker: a cluster's may need a while to start."""
        try:
            self._client.wait_for_workers(1, timeout=self.hung_after)
        except TimeoutError:
            raise self.no_workers() from None
        except OSError:
            raise self.gone() from None

    def check_versions(self) -> None:
        """Whether scheduler and workers have this alexshard and these decoders."""
        ours = versions()
        answers = {f"worker {worker}": answer for worker, answer in self._ask_all(host_and_versions).items()}
        try:
            answers[f"scheduler {self.address}"] = self._client.run_on_scheduler(host_and_versions)
        except OSError:
            raise self.gone() from None
        except Exception as error:
            answers[f"scheduler {self.address}"] = error
        for who, answer in answers.items():
            if isinstance(answer, Exception):
                raise AlexshardError(
                    f"alexshard cannot be started there: {type(answer).__name__}: {answer}",
                    where=who,
                    why="a set is packed by one version of everything",
                    remedy=f"install alexshard {ours['alexshard']} there: the environment that this command has",
                )
            host, theirs = answer
            if theirs != ours:
                raise other_versions(f"{who} ({host})", theirs, ours)

    def pack_shards(
        self, plans: Iterator[ShardPlan], job: Job, *, on_progress: OnProgress, on_shard: OnShard
    ) -> None:
        """Pack every planned shard.

        Args:
            on_progress: called with images looked at and refusals among them; what it raises ends the work.
            on_shard: called once for each shard, when its files are finished in job.folder.

        Raises:
            AlexshardError: a shard failed, a worker sees other files than we do, or the cluster is lost. What is
                queued is cancelled, what is being packed stops at the next image.
        """
        token = secrets.token_hex(8)
        with own_folder(job.folder, token) as own:
            containers = [replace(container, path=_absolute(container.path)) for container in job.containers]
            brief = Brief(replace(job, folder=own, containers=containers), versions(), token, f"alexshard-{token}")
            for worker, blind in self._ask_all(out_of_sight, brief).items():
                if blind is not None:
                    raise not_visible(f"worker {worker}", str(blind))
            _Packing(self, self._client, brief, job.folder, on_progress, on_shard).run(plans)

    def _ask_all(self, question: Any, *arguments: Any) -> dict[str, Any]:
        """What each worker answers; an exception where it cannot. One that is lost meanwhile is left out."""
        try:
            answers: dict[str, Any] = self._client.run(question, *arguments, on_error="return")
        except OSError:
            raise self.gone() from None
        return {worker: answer for worker, answer in answers.items() if not isinstance(answer, OSError)}

    def _info(self) -> dict[str, Any]:
        try:
            return dict(self._client.scheduler_info(n_workers=0))
        except OSError:
            raise self.gone() from None

    @property
    def num_threads(self) -> int:
        """How many shards can be packed at once, now."""
        return int(self._info()["total_threads"])

    def threads(self) -> dict[str, int]:
        """Threads of every worker that is there now, by its address."""
        if self._client.status != "running":
            raise self.gone()
        try:
            return dict(self._client.nthreads())
        except OSError:
            raise self.gone() from None

    def gone(self) -> AlexshardError:
        return AlexshardError(
            "the Dask scheduler went away, or dropped what it had",
            where=self.address,
            why="nobody hands out the shards that are left",
            remedy="start it and its workers again; the same command continues, finished shards are kept",
        )

    def no_workers(self) -> AlexshardError:
        return AlexshardError(
            f"the cluster has had no worker for {self.hung_after:g} s",
            where=self.address,
            why="nobody packs",
            remedy=f"start workers (dask worker {self.address}); the same command continues",
        )


@dataclass(slots=True)
class _InHand:
    """A shard that the cluster has."""

    plan: ShardPlan
    future: Future[None]
    counted: Counted = field(default_factory=Counted)
    worker: str | None = None  # that told last, if it is still there
    told: float = 0.0  # when
    at: int = 0  # images that it had looked at then


class _Packing:
    """One call of `Cluster.pack_shards`."""

    def __init__(
        self,
        cluster: Cluster,
        client: Client,
        brief: Brief,
        folder: Path,
        on_progress: OnProgress,
        on_shard: OnShard,
    ) -> None:
        self._cluster, self._client, self._brief, self._folder = cluster, client, brief, folder
        self._on_progress, self._on_shard = on_progress, on_shard
        self._brief_bytes = pickle.dumps(brief)
        self._in_hand: dict[str, _InHand] = {}
        self._inbox: queue.SimpleQueue[Told | str] = queue.SimpleQueue()
        # Seconds in which this process was there to listen: one that was stopped in a terminal and continued an
        # hour later, or waited long for an upload, takes nobody for hung.
        self._now = self._last_worker = self._heard = 0.0

    def run(self, plans: Iterator[ShardPlan]) -> None:
        self._client.subscribe_topic(self._brief.topic, lambda event: self._inbox.put(Told.parse(event[1])))
        try:
            looked, room, more = time.monotonic(), self._look(), True
            while more or self._in_hand:
                if (passed := time.monotonic() - looked) >= LOOK_EVERY_S:
                    looked += passed
                    self._now += min(passed, 2 * LOOK_EVERY_S)
                    room = self._look()
                while more and len(self._in_hand) < room:
                    plan = next(plans, None)
                    if plan is None:
                        more = False
                    else:
                        self._submit(plan)
                with suppress(queue.Empty):
                    self._receive(self._inbox.get(timeout=LOOK_EVERY_S))
        finally:
            with suppress(Exception):  # a client that has lost its scheduler has nothing to cancel
                self._client.cancel([shard.future for shard in self._in_hand.values()])
                self._client.unsubscribe_topic(self._brief.topic)

    def _submit(self, plan: ShardPlan) -> None:
        name = str(plan.name)
        future = self._client.submit(
            pack,
            pickle.dumps(plan),
            self._brief_bytes,
            key=f"{name}-{self._brief.token}",
            pure=False,
            retries=RETRIES,
        )
        self._in_hand[name] = _InHand(plan, future)
        future.add_done_callback(lambda _: self._inbox.put(name))

    def _look(self) -> int:
        """Who is there, and who has fallen silent; returns how many shards the cluster should have."""
        threads = self._cluster.threads()
        if threads:
            self._last_worker = self._now
        elif self._now - self._last_worker > self._cluster.hung_after:
            raise self._cluster.no_workers()
        else:
            self._heard = self._now  # nobody is there to tell
        if self._inbox.empty():  # else what was told last is not counted yet
            for shard in self._in_hand.values():
                if shard.worker not in threads:
                    shard.worker = None  # lost: the shard waits for another
                elif self._now - shard.told > self._cluster.hung_after:
                    raise self._hung(shard, shard.worker)
            # A worker may stop before it tells that it has begun; in the end all wait for it.
            if self._in_hand and self._now - self._heard > self._cluster.hung_after:
                raise self._silent()
        return sum(threads.values()) + _AHEAD

    def _receive(self, told: Told | str) -> None:
        if isinstance(
            told, str
        ):  # the name of a shard whose task has ended; if it went well, that was told before
            if told in self._in_hand and self._in_hand[told].future.status != "finished":
                raise self._failed(self._in_hand[told])
            return
        shard = self._in_hand.get(told.shard)
        if shard is None:
            return  # done meanwhile by another worker
        self._heard = self._now
        shard.worker, shard.told, shard.at = told.worker, self._now, told.images
        if any(news := shard.counted.news(told)):
            self._on_progress(*news)
        if told.error is not None:
            raise told.error
        if told.files is not None:
            self._cluster.usage = self._cluster.usage.beside(Usage(0.0, told.cpu_s, told.peak_bytes))
            move(told.files, self._brief.job.folder, self._folder)
            del self._in_hand[told.shard]
            self._on_shard(shard.plan.name)

    def _failed(self, shard: _InHand) -> AlexshardError:
        if self._client.status != "running" or shard.future.status != "error":
            return self._cluster.gone()
        error = shard.future.exception()
        if isinstance(error, KilledWorker):
            deaths = error.allowed_failures + 1
            workers, they = ("1 worker", "it") if deaths == 1 else (f"{deaths} workers", "they")
            return AlexshardError(
                f"{workers} died while {they} had {shard.plan.name}",
                where=f"worker {error.last_worker.address}, the last",
                why="it might be the shard that kills them",
                remedy="often memory ran out: give workers more of it or fewer threads (dask worker "
                "--memory-limit, --nthreads 1); the same command continues",
            )
        return AlexshardError(
            f"{shard.plan.name} cannot be packed: {type(error).__name__}: {error}",
            where=f"worker {shard.worker or 'unknown'}",
            why=f"{RETRIES + 1} tries ended so",
            remedy="look at that worker's log; the same command continues",
        )

    def _silent(self) -> AlexshardError:
        for worker, keys in self._client.processing().items():
            for shard in self._in_hand.values():
                if shard.future.key in keys:
                    return self._hung(shard, worker)
        return AlexshardError(
            f"no worker has begun one of {len(self._in_hand):,} shards for {self._cluster.hung_after:g} s",
            where=self._cluster.address,
            why="nobody packs",
            remedy="see what else the cluster is busy with; the same command continues, --hung-after waits longer",
        )

    def _hung(self, shard: _InHand, worker: str) -> AlexshardError:
        """Also frees the worker where its nanny can: it would be stuck for whoever comes next, too."""
        samples = source_order(shard.plan.samples)
        at = f"image {samples[shard.at].name}" if shard.at < len(samples) else "at its end, when it is written"
        with suppress(Exception):  # a worker without a nanny stays as it is
            self._client.cancel([shard.future])
            self._client.restart_workers([worker], timeout=10, raise_for_error=False)
        return AlexshardError(
            f"a worker hangs: no image was finished for {self._cluster.hung_after:g} s",
            where=f"{shard.plan.name}, {at}, worker {worker}",
            why="one shard that never ends keeps the whole set from being finished",
            remedy="look at the disk that the image lies on, restart that worker if it has no nanny; the same "
            "command continues, --hung-after waits longer",
        )


def _absolute(path: Path) -> Path:
    """The path from the root, links kept: what they lead to may lie elsewhere on another machine."""
    if not isinstance(path, Path):
        return path  # of a store, which is the same from everywhere
    return Path(os.path.abspath(path))  # noqa: PTH100
