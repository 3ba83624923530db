"""Who runs in `tools/bench_loader --against`: peers, our loader at the same work, and what limits all of them."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import torch

from ..pipeline import Loader, Stages
from ..shards import ShardSet, WrongCall
from ..trainer import Ranks
from .loader_figures import Run
from .loader_meter import Meter, timed
from .loader_peers import Asked, Decoding, Moving, Peer, chosen, settled
from .loader_training import endless

OURS = "alexshard, the same work"


class Rivals:
    """Opened peers, and limits; made before anything that starts threads, since some of them fork.

    Args:
        text: as `--against` has it.
        on_open: told who is made ready, which may take long.

    Raises:
        WrongCall: no such peer, not installed, or none of them can do what is asked.
    """

    def __init__(
        self,
        text: str,
        shard_set: ShardSet,
        *,
        split: str,
        batch_size: int,
        threads: int,
        output: str,
        side: int,
        stack: ExitStack,
        on_open: Callable[[str], None],
    ) -> None:
        self.listed: list[dict[str, str]] = []
        self.left_out: dict[str, str] = {}
        self._turns: dict[str, Callable[[float], Run]] = {}
        asked = Asked(
            shard_set,
            Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bench_loader-"))),
            split=split,
            batch_size=batch_size,
            threads=threads,
            output=output,
            side=side,
        )
        peers = self._able(text, asked)
        for peer in peers:
            on_open(f"{peer.name} is made ready" + (": it writes a copy of the images" if peer.copies else ""))
            batches = stack.enter_context(peer.open(asked))
            self._take(
                peer.name,
                (len(batch.images) for batch in batches),
                version=peer.found().version or "",
                about=peer.about,
                lacks=peer.lacks,
                ahead=peer.ahead(threads),
            )
        self._asked = asked

    def _able(self, text: str, asked: Asked) -> list[Peer]:
        peers = chosen(text)
        for peer in peers:
            if why := peer.refuses(asked):
                self.left_out[peer.name] = why
        able = [peer for peer in peers if peer.name not in self.left_out]
        if not able:
            raise WrongCall(
                f"--against {text}: nobody to run",
                where="; ".join(self.left_out.values()),
                remedy="leave --against out, or install peers (docs/peers.md)",
            )
        return able

    def add_ours(self, loader: Loader) -> None:
        """Our loader, opened for the work that peers are asked for, as the first to compare with."""
        work = (len(batch) for batch in endless(loader))
        self._take(OURS, work, about="augmented as paper, channel mean", ahead=Stages(loader).ahead("loader"))
        self.listed.insert(0, self.listed.pop())

    def add_limits(self) -> None:
        """What no loader passes: decoding alone, moving memory alone."""
        if not self._asked.raw:
            self._limit("decoding alone", Decoding(self._asked).images_per_s, "nothing but decoding, from memory")
        self._limit("copying memory alone", Moving(self._asked).images_per_s, "batches copied from memory")

    def turns(self, seconds: float) -> dict[str, Callable[[], Run]]:
        """Each one's turn, in the order of `listed`."""

        def turn(name: str) -> Run:
            settled()  # whoever had the last turn still makes batches ahead
            return self._turns[name](seconds)

        return {each["name"]: partial(turn, each["name"]) for each in self.listed}

    def _take(
        self, name: str, work: Iterator[int], *, about: str, ahead: int, version: str = "", lacks: str = ""
    ) -> None:
        meter = Meter(torch.device("cpu"), tree=True)
        self.listed.append({"name": name, "version": version, "about": about, "lacks": lacks})
        self._turns[name] = lambda seconds: timed(work, seconds=seconds, ahead=ahead, meter=meter, ranks=Ranks())

    def _limit(self, name: str, images_per_s: Callable[[float], float], about: str) -> None:
        meter = Meter(torch.device("cpu"))

        def turn(seconds: float) -> Run:
            meter.start()
            rate = images_per_s(seconds)
            return meter.run(max(1, round(rate * meter.elapsed)))

        self.listed.append({"name": name, "version": "", "about": about, "lacks": "all the rest"})
        self._turns[name] = turn
