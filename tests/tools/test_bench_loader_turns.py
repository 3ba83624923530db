"""tools/bench_loader: of each run only those batches count that were made after its clock started."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from itertools import count
from pathlib import Path

import pytest
import torch
from alexshard.pipeline import STAGES, Loader, Stages
from alexshard.shards import ShardSet
from alexshard.tools.loader_ladder import How, run_replay, run_stages
from alexshard.tools.loader_meter import Meter, timed
from alexshard.tools.loader_peers import PEERS, Peer
from alexshard.tools.loader_peers_common import Asked, PeerBatch
from alexshard.tools.loader_rivals import OURS, Rivals
from alexshard.trainer import Ranks

AT_ONCE = How(1, 0.0, Ranks(), lambda _: None)  # one batch is enough where no time is asked for


def test_batches_made_ahead_of_a_run_are_not_counted() -> None:
    work = iter(range(100, 200))
    run = timed(work, seconds=0.0, ahead=5, meter=Meter(torch.device("cpu")), ranks=Ranks())

    assert run.images == 105  # of the sixth alone
    assert next(work) == 106


def test_what_a_stage_has_made_ahead_is_taken_out_of_its_run(
    sample_set: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken: Counter[str] = Counter()
    batches, replayed = Stages.batches, Stages.replayed

    def noting(stages: Stages, stage: str) -> Iterator[int]:
        for images in batches(stages, stage):
            taken[stage] += 1
            yield images

    def noting_replayed(stages: Stages, kept: list[object]) -> Iterator[object]:
        for batch in replayed(stages, kept):  # type: ignore[arg-type]
            taken["replay"] += 1
            yield batch

    monkeypatch.setattr(Stages, "batches", noting)
    monkeypatch.setattr(Stages, "replayed", noting_replayed)
    with Loader(sample_set, batch_size=16, threads=2) as loader:
        run_stages(loader, AT_ONCE)
        run_replay(loader, AT_ONCE)
        ready = loader.prefetch + 1  # at rest: those in the queue, and one that waits to be put there
        begun = loader._maker.in_flight

    assert taken == dict.fromkeys(STAGES[:-1], begun + 2) | {
        "loader": ready + begun + 2,
        "replay": ready + begun + 2,
    }


@contextmanager
def numbered(asked: Asked) -> Iterator[Iterator[PeerBatch]]:
    """Batches of 1, 2, 3, … images."""
    yield (PeerBatch(torch.empty(images, 1), torch.empty(images)) for images in count(1))


def test_what_others_and_ours_have_made_ahead_is_taken_out_of_their_turns(
    sample_set: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    peer = Peer(
        name="numbered", about="", lacks="", modules=(), package=("pytest",), run=numbered, ahead_per_thread=2
    )
    monkeypatch.setitem(PEERS, "numbered", peer)
    with ExitStack() as stack:
        rivals = Rivals(
            "numbered",
            ShardSet.open(sample_set),
            split="train",
            batch_size=16,
            threads=3,
            output="float32",
            side=224,
            stack=stack,
            on_open=lambda _: None,
        )
        loader = stack.enter_context(Loader(sample_set, batch_size=16, threads=3))
        rivals.add_ours(loader)
        turns = rivals.turns(0.0)
        turns[OURS]()
        run = turns["numbered"]()
        delivered = loader.times.images // 16

        assert run.images == peer.ahead(3) + 1 == 13
        assert delivered == Stages(loader).ahead("loader") + 1 > loader.prefetch + 2
