"""Reading files below one address: whole small ones side by side, large ones in parts, again where that may help.

Stores answer by ranges, of which a few are on their way at a time; a part that fails is asked for again, not the
whole file. Web servers need not know ranges, so from them a file comes in one stream, which begins anew where it
is cut. Nothing but the parts on their way is held in memory.
"""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import CancelledError, Future
from contextlib import closing
from dataclasses import dataclass
from typing import Any, TypeVar

from ..shards import PAUSES_S, S3_SCHEMES, AlexshardError, Patience, WrongCall, open_store

PART_BYTES = 4 << 20
PARTS_AT_ONCE = 4  # of one file
FILES_AT_ONCE = 32  # small ones
CONNECTIONS = 32
# A training run outlives a store that is away for minutes; who has just begun is told sooner.
LONG_PAUSES_S = (*PAUSES_S, 16.0, 32.0, 60.0, 60.0, 60.0, 60.0)
_WEB = frozenset({"http", "https"})
T = TypeVar("T")

_PIECE = 1 << 20  # of a stream
_NEEDS = "a shard set is read object by object, below its prefix"


class Stopped(WrongCall):
    """Reading was ended by `stop` in another thread."""

    def __init__(self, shown: str = "") -> None:
        super().__init__(f"reading from {shown} was ended, while something was on its way")


@dataclass(frozen=True, slots=True)
class _Request:
    """A file, or the bytes start..stop of one."""

    name: str
    start: int | None = None
    stop: int | None = None


class RemoteFiles:
    """The files below one address. Threads may share it; a forked process must make its own.

    Args:
        address: of any store that fsspec knows.
        pauses: between attempts, in seconds.

    Raises:
        WrongCall: there is no such store, or its library is missing.
        AlexshardError: it cannot be reached.
    """

    def __init__(self, address: str, *, pauses: tuple[float, ...] = LONG_PAUSES_S) -> None:
        self._patience = Patience(address, pauses=pauses, needs=_NEEDS)
        self.shown = self._patience.shown
        scheme = address.partition("://")[0].lower()
        self._streams = scheme in _WEB
        self._fs, path = open_store(address, self._patience, connections=CONNECTIONS)
        self._path, mark, query = path.partition("?") if self._streams else (path, "", "")
        self._path, self._query = self._path.rstrip("/"), mark + query
        self._whole = {"max_concurrency": 1} if scheme in S3_SCHEMES else {}  # else s3fs asks for the size first
        self._one_by_one = threading.Lock()  # others keep one connection, which no two threads may use
        self._lock = threading.Lock()
        self._on_their_way: set[Future[Any]] = set()
        self._stopped = False

    @property
    def parallel(self) -> bool:
        """Whether several threads get more of it than one."""
        return bool(self._fs.async_impl)

    def stop(self) -> None:
        """End what other threads are reading, soon; they get `Stopped`, and so does who reads later."""
        self._patience.stop()
        with self._lock:
            self._stopped = True
            on_their_way = list(self._on_their_way)
        for future in on_their_way:
            future.cancel()

    def read(self, name: str) -> bytes:
        """A whole small file.

        Raises:
            FileNotFoundError: there is none of that name.
            WrongCall: it may not be read.
            AlexshardError: the store fails again and again.
            Stopped: `stop` was called.
        """
        return next(data for _, data in self._in_order([_Request(name)], 1))

    def read_all(self, names: Iterable[str]) -> Iterator[tuple[str, bytes]]:
        """Whole small files, several on their way at a time; in order. Raises as `read` does."""
        with closing(self._in_order(map(_Request, names), FILES_AT_ONCE)) as answers:
            for request, data in answers:
                yield request.name, data

    def download(self, name: str, size: int, put: Callable[[int, bytes], None]) -> None:
        """Hand the first `size` bytes of a file to `put(offset, bytes)`, in order; from 0 again after a failure.

        Raises as `read` does.
        """
        if self._streams:
            self._streamed(name, size, put)
            return
        parts = (_Request(name, at, min(at + PART_BYTES, size)) for at in range(0, size, PART_BYTES))
        with closing(self._in_order(parts, PARTS_AT_ONCE)) as answers:
            for request, data in answers:
                assert request.start is not None
                put(request.start, data)

    # How -------------------------------------------------------------------------------------------------------

    def _in_order(self, requests: Iterable[_Request], ahead: int) -> Generator[tuple[_Request, bytes], None, None]:
        """The answers in the order of the requests; as many as `ahead` are on their way."""
        if not self.parallel:
            for request in requests:
                yield request, self._patiently(request, None)
            return
        waiting: deque[tuple[_Request, Future[bytes]]] = deque()
        left = iter(requests)
        try:
            for request in left:
                waiting.append((request, self._asked(request)))
                if len(waiting) == ahead:
                    break
            while waiting:
                request, future = waiting.popleft()
                data = self._patiently(request, future)
                if (following := next(left, None)) is not None:
                    waiting.append((following, self._asked(following)))
                yield request, data
        finally:
            for _, future in waiting:
                future.cancel()

    def _patiently(self, request: _Request, asked: Future[bytes] | None) -> bytes:
        def attempt() -> bytes:
            nonlocal asked
            if self.parallel:
                future, asked = asked or self._asked(request), None
                data = self._answer(future)
            else:
                with self._one_by_one:
                    data = bytes(self._fs.cat_file(self._at(request.name), **self._range(request)))
            wanted = len(data) if request.stop is None else request.stop - (request.start or 0)
            if len(data) != wanted:
                raise OSError(f"{len(data):,} bytes came of {wanted:,}")
            return data

        return self._run(request.name, attempt)

    def _run(self, name: str, attempt: Callable[[], T]) -> T:
        if self._stopped:
            raise Stopped(self.shown)
        try:
            return self._patience.run("read", name, attempt)
        except AlexshardError:
            if self._stopped:
                raise Stopped(self.shown) from None
            raise

    def _asked(self, request: _Request) -> Future[bytes]:
        return self._begun(self._fs._cat_file(self._at(request.name), **self._range(request)))

    def _range(self, request: _Request) -> dict[str, Any]:
        return self._whole if request.start is None else {"start": request.start, "end": request.stop}

    def _begun(self, coroutine: Any) -> Future[Any]:
        future = asyncio.run_coroutine_threadsafe(coroutine, self._fs.loop)
        with self._lock:
            if not self._stopped:
                self._on_their_way.add(future)
                future.add_done_callback(self._on_their_way.discard)
                return future
        future.cancel()
        return future

    def _answer(self, future: Future[T]) -> T:
        try:
            return future.result()
        except CancelledError:
            raise Stopped(self.shown) from None
        except BaseException:
            future.cancel()  # Ctrl-C while waiting
            raise

    def _streamed(self, name: str, size: int, put: Callable[[int, bytes], None]) -> None:
        def attempt() -> None:
            sink = _Sink(put, size)
            coroutine = self._fs._get_file(self._at(name), sink, chunk_size=_PIECE)
            self._answer(self._begun(coroutine))
            if sink.come != size:
                raise OSError(f"{sink.come:,} bytes came of {size:,}")

        self._run(name, attempt)

    def _at(self, name: str) -> str:
        return f"{self._path}/{name}{self._query}" if self._path else name


class _Sink:
    """What fsspec takes for a file that it may write a stream to."""

    def __init__(self, put: Callable[[int, bytes], None], size: int) -> None:
        self._put, self._size = put, size
        self.come = 0

    def write(self, data: bytes) -> int:
        if self.come + len(data) > self._size:
            raise OSError(f"more than {self._size:,} bytes came")
        if data:
            self._put(self.come, data)
        self.come += len(data)
        return len(data)

    def read(self) -> bytes:
        raise OSError("only written")

    def tell(self) -> int:
        return self.come

    def close(self) -> None:
        """Nothing is open."""
