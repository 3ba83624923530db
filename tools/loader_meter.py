"""Measuring one run for `tools/bench_loader`: clock, CPU time, memory; several ranks begin at the same time."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import torch

from ..trainer import Ranks
from .loader_figures import Run


class Meter:
    """Clock, CPU time and memory from `start` to `run`; `look` sees how much memory there is meanwhile.

    Args:
        device: waited for at the end, and its memory looked at.
        store_s: seconds so far that somebody waited for shards.
        tree: CPU time of the processes below this one counts too.
    """

    def __init__(
        self, device: torch.device, store_s: Callable[[], float] = lambda: 0.0, *, tree: bool = False
    ) -> None:
        self._device, self._store_s, self._tree = device, store_s, tree

    def start(self) -> None:
        self._rss = self._own = self._card = 0
        self._store = self._store_s()
        self._cpu, self._began = self._cpu_s(), time.perf_counter()

    def _cpu_s(self) -> tuple[float, float]:
        mine = os.times()
        below = cpu_s_of_children(os.getpid()) if self._tree else (0.0, 0.0)
        return mine.user + below[0], mine.system + below[1]

    @property
    def elapsed(self) -> float:
        return time.perf_counter() - self._began

    def look(self) -> None:
        """Notice the memory of this moment; microseconds."""
        rss, own = resident_bytes()
        self._rss, self._own = max(self._rss, rss), max(self._own, own)
        if self._device.type == "cuda":
            free, total = torch.cuda.mem_get_info(self._device)
            self._card = max(self._card, total - free)

    def run(self, images: int, waited_s: float = 0.0) -> Run:
        """The run that ends now, with all that was given to a card."""
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        seconds, (user, system) = self.elapsed, self._cpu_s()
        self.look()
        return Run(
            images=images,
            seconds=seconds,
            user_s=user - self._cpu[0],
            system_s=system - self._cpu[1],
            rss_bytes=self._rss,
            own_bytes=self._own,
            device_bytes=self._card,
            store_s=self._store_s() - self._store,
            waited_s=waited_s,
        )


def timed(work: Iterator[int], *, seconds: float, ahead: int, meter: Meter, ranks: Ranks) -> Run:
    """One run over at least `seconds` and one batch of `work`, whose items are counts of images.

    The first `ahead` batches are not counted: they were made before the clock starts.
    """
    for _ in range(ahead):
        next(work)
    ranks.wait()
    meter.start()
    images = 0
    while meter.elapsed < seconds or images == 0:
        images += next(work)
        meter.look()
    return meter.run(images)


def resident_bytes() -> tuple[int, int]:
    """Memory of this process: all that is resident, and what of it is no page of a file."""
    with open("/proc/self/statm", "rb") as file:  # noqa: PTH123 (a Path would cost as much again)
        _, resident, shared, *_ = map(int, file.read().split())
    page = os.sysconf("SC_PAGE_SIZE")
    return resident * page, (resident - shared) * page


def cpu_s_of_children(pid: int) -> tuple[float, float]:
    """User and system time of the processes that live below one, and below those; seconds."""
    user = system = 0.0
    tick = os.sysconf("SC_CLK_TCK")
    for tasks in Path(f"/proc/{pid}/task").glob("*/children"):
        for child in _words(tasks):
            fields = _words(Path(f"/proc/{child}/stat"), after=")")
            if len(fields) > 12:  # else it ended meanwhile
                below = cpu_s_of_children(int(child))
                user, system = user + int(fields[11]) / tick + below[0], system + int(fields[12]) / tick + below[1]
    return user, system


def _words(path: Path, after: str = "") -> list[str]:
    with suppress(OSError):
        text = path.read_text(encoding="utf-8", errors="replace")
        return text[text.rfind(after) + len(after) :].split() if after else text.split()
    return []
