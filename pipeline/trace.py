"""Where the time of a run lies, as a file that Perfetto (ui.perfetto.dev) and chrome://tracing open.

    with Trace(Path("loader.trace.json")):
        ...                                     # whatever calls span(...) is in the file

    with span("decode", images=32):             # somewhere below, in any thread: nothing unless a trace records
        ...

Spans are meant for pieces, batches and shards, never for single images: recording one costs microseconds.
Source: the Trace Event Format (Chrome's), complete events "X" with `ts` and `dur` in microseconds.
"""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from itertools import count
from pathlib import Path
from types import TracebackType
from typing import Any

from ..shards import WrongCall, appearing_whole

MOST_EVENTS = 2_000_000  # about 300 bytes each in the file

_NOTHING: AbstractContextManager[None] = nullcontext()
_recording: Trace | None = None  # in this process; spans of all threads go there


def span(name: str, **about: int | float | str) -> AbstractContextManager[None]:
    """Time the block as `name` of the calling thread, with `about`; does nothing unless a `Trace` records."""
    trace = _recording
    return _NOTHING if trace is None else _Span(trace, name, about)


class Trace:
    """Records the spans of this process while it is entered, and then writes them to `path`.

    Args:
        path: of the file, which appears whole; None: the caller takes `events()` and writes them (several ranks).
        process: the name that the viewer shows for this process.

    Raises:
        WrongCall: another trace is recording, or the folder of `path` is missing.
    """

    def __init__(self, path: Path | None, *, process: str = "alexshard") -> None:
        if path is not None and not path.parent.is_dir():
            raise WrongCall(f"{path} cannot be written: its folder is missing", remedy=f"mkdir -p {path.parent}")
        self.path, self.process = path, process
        self.left_out = 0  # spans beyond MOST_EVENTS
        self._spans: list[tuple[int, str, int, int, dict[str, int | float | str]]] = []
        self._threads: dict[int, str] = {}
        self._numbers = count(1)
        self._mine = (
            threading.local()
        )  # the system uses the id of a thread that ended again; these numbers are not

    def __enter__(self) -> Trace:
        global _recording
        if _recording is not None:
            raise WrongCall("a trace is being recorded already", why="spans of a process go to one trace")
        self._thread()  # whoever records comes first in the picture
        _recording = self
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        global _recording
        _recording = None
        if self.path is not None and kind is None:
            write_trace(self.path, self.events())

    def add(self, name: str, began_ns: int, ended_ns: int, about: dict[str, int | float | str]) -> None:
        """A span of the calling thread, in nanoseconds of `time.perf_counter_ns`."""
        if len(self._spans) < MOST_EVENTS:
            self._spans.append((self._thread(), name, began_ns, ended_ns, about))
        else:
            self.left_out += 1

    def events(self) -> list[dict[str, Any]]:
        """All that was recorded, in order of time, the names of process and threads first."""
        pid = os.getpid()
        names = [_named("process_name", pid, 0, self.process)]
        names += [_named("thread_name", pid, tid, name) for tid, name in sorted(self._threads.items())]
        # Of two spans that began together the longer one holds the other, or the one that was added later.
        spans = self._spans[::-1]
        spans.sort(key=lambda each: (each[2], -each[3]))
        return names + [
            {
                "name": name,
                "cat": "alexshard",
                "ph": "X",
                "ts": began / 1000,
                "dur": (ended - began) / 1000,
                "pid": pid,
                "tid": tid,
                **({"args": about} if about else {}),
            }
            for tid, name, began, ended, about in spans
        ]

    def _thread(self) -> int:
        number = getattr(self._mine, "number", None)
        if number is None:
            number = self._mine.number = next(self._numbers)
            self._threads[number] = threading.current_thread().name
        return int(number)


def write_trace(path: Path, events: Iterable[dict[str, Any]]) -> None:
    """A file of `events`, of one process or of several on one machine (their clock is the same)."""
    with appearing_whole(path) as file:
        file.write(b'{"displayTimeUnit": "ms", "traceEvents": [\n')
        for number, event in enumerate(events):
            file.write((b",\n" if number else b"") + json.dumps(event).encode())
        file.write(b"\n]}\n")


class _Span(AbstractContextManager[None]):
    __slots__ = ("_about", "_began", "_name", "_trace")

    def __init__(self, trace: Trace, name: str, about: dict[str, int | float | str]) -> None:
        self._trace, self._name, self._about = trace, name, about

    def __enter__(self) -> None:
        self._began = time.perf_counter_ns()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._trace.add(self._name, self._began, time.perf_counter_ns(), self._about)


def _named(what: str, pid: int, tid: int, name: str) -> dict[str, Any]:
    return {"name": what, "ph": "M", "pid": pid, "tid": tid, "args": {"name": name}}
