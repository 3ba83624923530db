"""Other loaders on the same images, for `tools/bench_loader --against`, and the limits that no loader passes.

Each peer is asked for the same work (`Asked`) and says what of it it does not do. None is a dependency: what is
not installed is told with the reason. A test holds each one's pixels against ours, so that none is timed for work
that it does not do.

    peers = chosen("all")
    with ExitStack() as stack:
        opened = {peer.name: stack.enter_context(peer.open(asked)) for peer in peers}
        for peer in peers:
            settled()
            for batch in islice(opened[peer.name], peer.ahead(asked.threads), None):  # then the clock starts
                ...
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from difflib import get_close_matches

import numpy as np
import simplejpeg

from ..shards import WrongCall
from .loader_meter import cpu_s_of_children
from .loader_peers_common import Asked, Found, Peer, PeerBatch, StoredFiles
from .loader_peers_native import NATIVE_PEERS
from .loader_peers_python import PYTHON_PEERS

__all__ = [
    "PEERS",
    "Asked",
    "Decoding",
    "Found",
    "Moving",
    "Peer",
    "PeerBatch",
    "chosen",
    "settled",
]

# Those that fork come first: opened in this order, they do so before the others have started threads.
PEERS: dict[str, Peer] = {peer.name: peer for peer in (*PYTHON_PEERS, *NATIVE_PEERS)}

_KEPT_IMAGES = 4096  # of those that are decoded again and again
_LOOK_S, _RESTING = 0.04, 3  # seconds between looks at who is at work, and looks in a row that find nobody
_PIECE = 32  # images that a thread takes at a time


def chosen(text: str) -> list[Peer]:
    """Peers from a list such as "ffcv,dali"; "all" is those that are installed.

    Raises:
        WrongCall: one of them is none, or is not installed.
    """
    if text == "all":
        return [peer for peer in PEERS.values() if peer.found().version is not None]
    peers, names = [], [part.strip() for part in text.split(",")]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise WrongCall(f"--against names {twice} twice", remedy=f"--against {','.join(dict.fromkeys(names))}")
    for name in names:
        if name not in PEERS:
            near = get_close_matches(name, PEERS, 1)
            raise WrongCall(
                f"--against: {name!r} is none of {', '.join(PEERS)}",
                remedy=f"--against {near[0] if near else 'all'}",
            )
        if why := PEERS[name].found().why:
            raise WrongCall(f"--against: {name} {why}", remedy=f"pip install {PEERS[name].package[0]}")
        peers.append(PEERS[name])
    return peers


def settled(limit_s: float = 3.0) -> bool:
    """Wait until this process and those below it rest: who had the last turn first fills up what it makes ahead.

    Returns:
        Whether they do; False: they were still at work after `limit_s`.
    """
    until, resting, before = time.perf_counter() + limit_s, 0, _cpu_s()
    while resting < _RESTING and time.perf_counter() < until:
        time.sleep(_LOOK_S)
        now = _cpu_s()
        resting = resting + 1 if now - before < _LOOK_S / 4 else 0
        before = now
    return resting == _RESTING


def _cpu_s() -> float:
    return time.process_time() + sum(cpu_s_of_children(os.getpid()))


class Decoding:
    """Nothing but decoding: JPEGs that are in memory, by libjpeg-turbo, each thread into one buffer of its own."""

    def __init__(self, asked: Asked) -> None:
        order = np.random.default_rng(asked.seed).permutation(asked.samples)[:_KEPT_IMAGES]
        with closing(StoredFiles(asked)) as files:
            kept = [files.file(int(sample)) for sample in order]
        self._pieces = [kept[start : start + _PIECE] for start in range(0, len(kept), _PIECE)]
        self._threads, self._side = asked.threads, asked.stored_side

    def images_per_s(self, seconds: float) -> float:
        def work(number: int) -> int:
            buffer, images = np.empty((self._side, self._side, 3), np.uint8), 0
            own = self._pieces[number :: self._threads] or self._pieces
            while True:
                for piece in own:
                    for file in piece:
                        simplejpeg.decode_jpeg(file, colorspace="RGB", buffer=buffer)
                    images += len(piece)
                    if time.perf_counter() > until:
                        return images

        started = time.perf_counter()
        until = started + seconds
        return _in_threads(self._threads, work) / (time.perf_counter() - started)


class Moving:
    """Nothing but moving memory: batches of the output's size, copied from other ones, none of it in a cache."""

    def __init__(self, asked: Asked) -> None:
        shape = (asked.batch_size, asked.side, asked.side, 3)
        self._from = [np.ones(shape, np.float32 if asked.floats else np.uint8) for _ in range(2 * asked.threads)]
        self._into = [np.ones_like(batch) for batch in self._from]
        self._threads = asked.threads

    def images_per_s(self, seconds: float) -> float:
        def work(number: int) -> int:
            images = 0
            while time.perf_counter() <= until or images == 0:
                for place in (number, number + self._threads):
                    np.copyto(self._into[place], self._from[place])
                    images += len(self._into[place])
            return images

        started = time.perf_counter()
        until = started + seconds
        return _in_threads(self._threads, work) / (time.perf_counter() - started)


def _in_threads(threads: int, work: Callable[[int], int]) -> int:
    with ThreadPoolExecutor(threads) as pool:
        counts: Sequence[int] = list(pool.map(work, range(threads)))
    return sum(counts)
