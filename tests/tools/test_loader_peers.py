"""Other loaders on our images: each gives the very images that ours gives, cut and mirrored at random."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Iterator
from itertools import count, islice
from pathlib import Path
from typing import NamedTuple

import alexshard
import numpy as np
import pytest
import torch
from alexshard.pipeline import Loader
from alexshard.shards import ShardSet, WrongCall
from alexshard.tools.loader_peers import (
    PEERS,
    Asked,
    Decoding,
    Moving,
    Peer,
    PeerBatch,
    chosen,
    settled,
)
from alexshard.tools.loader_peers_python import _Permutations
from numpy.typing import NDArray

ALWAYS = {"torch", "webdataset", "dali", "dali-region", "dali-numpy"}  # of what the project itself needs
BATCH = 16
PAGE = Path(alexshard.__file__).parent / "docs" / "peers.md"


class Ours(NamedTuple):
    """A set and what our loader makes of its split train."""

    path: Path
    pixels: NDArray[np.uint8]  # whole, (n, 256, 256, 3)
    labels: NDArray[np.int64]
    mean: NDArray[np.float32]


@pytest.fixture(scope="module", params=["jpeg", "raw"])
def ours(request: pytest.FixtureRequest) -> Ours:
    path = request.getfixturevalue("sample_set" if request.param == "jpeg" else "raw_sample_set")
    with Loader(path, augment=None, order="stored", output="uint8", crop=256, batch_size=160) as loader:
        (batch,) = loader
        mean = np.array(loader.shard_set.manifest.statistics.channel_mean, np.float32)
    return Ours(path, batch.images.movedim(1, -1).numpy(), batch.labels.numpy(), mean)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("peers")


@pytest.fixture(params=PEERS.values(), ids=PEERS)
def peer(request: pytest.FixtureRequest) -> Peer:
    return able(request.param)


def able(peer: Peer) -> Peer:
    """The peer; skips where it is not installed."""
    found = peer.found()
    if found.version is None:
        assert peer.name not in ALWAYS
        pytest.skip(f"PEER NOT INSTALLED, so not compared: {peer.name} {found.why}")
    return peer


def asked(ours: Ours, cache: Path, **options: object) -> Asked:
    return Asked(ShardSet.open(ours.path), cache, batch_size=BATCH, **options)


def opened(peer: Peer, wanted: Asked, batches: int) -> list[PeerBatch]:
    """Its first batches, copied; skips where it cannot do what is asked."""
    if refused := peer.refuses(wanted):
        pytest.skip(refused)
    with peer.open(wanted) as endless:
        return [PeerBatch(batch.images.clone(), batch.labels.clone()) for batch in islice(endless, batches)]


def tolerance(peer: Peer, wanted: Asked) -> float:
    return 0.001 if wanted.raw else peer.tolerance


@pytest.mark.filterwarnings("ignore")  # of the peers, about themselves
@pytest.mark.parametrize("output", ["float32", "uint8"])
def test_a_peer_gives_the_images_that_ours_gives(ours: Ours, peer: Peer, cache: Path, output: str) -> None:
    wanted = asked(ours, cache, output=output, augmented=False)
    batches = opened(peer, wanted, len(ours.labels) // BATCH)
    images = torch.cat([batch.images for batch in batches])
    assert (images.shape, images.dtype) == ((160, 3, 224, 224), getattr(torch, output))
    central = ours.pixels[:, 16:240, 16:240].astype(np.float32)
    given = images.movedim(1, -1).numpy() + (ours.mean if output == "float32" else np.float32(0))

    looks = small(central)
    nearest = [int(np.abs(looks - look).mean((1, 2, 3)).argmin()) for look in small(given)]
    apart = [np.abs(image - central[sample]).mean() for image, sample in zip(given, nearest, strict=True)]
    assert max(apart) <= tolerance(peer, wanted)
    assert torch.cat([batch.labels for batch in batches]).tolist() == ours.labels[nearest].tolist()
    assert nearest != sorted(nearest)
    if peer.exact:
        assert sorted(nearest) == list(range(160))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("output", ["float32", "uint8"])
def test_a_peer_cuts_mirrors_and_jitters_at_random(ours: Ours, peer: Peer, cache: Path, output: str) -> None:
    wanted = asked(ours, cache, output=output)
    batches = opened(peer, wanted, 2)[1:]
    images = torch.cat([batch.images for batch in batches]).movedim(1, -1).numpy().astype(np.float32)
    labels = torch.cat([batch.labels for batch in batches]).numpy()
    found = [place_of(image, label, ours) for image, label in zip(images, labels, strict=True)]

    places, mirrors, offsets, errors = map(list, zip(*found, strict=True))
    assert max(errors) <= tolerance(peer, wanted)
    assert len({(y, x) for _, y, x in places}) > len(places) // 2
    assert {0, 1} == set(mirrors)
    if output == "uint8":
        assert np.abs(offsets).max() <= tolerance(peer, wanted)
    else:
        jitter = np.array(offsets) + ours.mean
        usual = np.linalg.norm(wanted.jitter_matrix, axis=0)
        low, high = (0.4, 2.0) if peer.jitters else (0.0, 0.01)
        assert (low * usual <= jitter.std(0)).all()
        assert (np.sqrt((jitter**2).mean(0)) <= high * usual + tolerance(peer, wanted)).all()


def small(images: NDArray[np.float32]) -> NDArray[np.float32]:
    """(N, 224, 224, 3) as means of 14×14 blocks."""
    return images.reshape(len(images), 16, 14, 16, 14, 3).mean((2, 4))


def place_of(
    image: NDArray[np.float32], label: int, ours: Ours
) -> tuple[tuple[int, int, int], int, list[float], float]:
    """Which crop of a picture of that label it is: (sample, y, x), mirrored, colour offset, error less that."""
    rng = np.random.default_rng(0)
    ys, xs = rng.integers(0, 224, (2, 24))
    shifts = np.arange(33)
    best: tuple[float, tuple[int, int, int], int] = (np.inf, (0, 0, 0), 0)
    for sample in np.flatnonzero(ours.labels == label):
        for mirror in (0, 1):
            columns = 223 - xs if mirror else xs
            seen = ours.pixels[sample][
                (ys + shifts[:, None])[:, None, :], (columns + shifts[:, None])[None, :, :]
            ].astype(np.float32)
            apart = image[ys, xs] - seen
            error = np.abs(apart - apart.mean(2, keepdims=True)).mean((2, 3))
            y, x = np.unravel_index(error.argmin(), error.shape)
            best = min(best, (float(error[y, x]), (int(sample), int(y), int(x)), mirror))
    _, (sample, y, x), mirror = best
    cut = ours.pixels[sample, y : y + 224, x : x + 224].astype(np.float32)
    apart = image - (cut[:, ::-1] if mirror else cut)
    offset = apart.mean((0, 1), dtype=np.float64)
    return (sample, y, x), mirror, offset.tolist(), float(np.abs(apart - offset).mean())


def test_all_are_those_that_are_installed() -> None:
    names = {peer.name for peer in chosen("all")}

    assert names >= ALWAYS
    assert names == {name for name, peer in PEERS.items() if peer.found().version}


def test_peers_are_chosen_by_name_each_once() -> None:
    assert [peer.name for peer in chosen("webdataset, dali")] == ["webdataset", "dali"]
    with pytest.raises(WrongCall, match="names webdataset twice"):
        chosen("webdataset, dali,webdataset")


def test_a_peer_that_nobody_knows_is_refused_with_the_nearest_name() -> None:
    with pytest.raises(WrongCall, match=r"(?s)'webdatasets' is none of .*--against webdataset$"):
        chosen("dali,webdatasets")


def test_a_peer_that_is_not_installed_is_refused_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    absent = Peer(
        name="absent", about="", lacks="", modules=("no_such_thing",), package=("thing",), run=PEERS["dali"].run
    )
    monkeypatch.setitem(PEERS, "absent", absent)

    with pytest.raises(WrongCall, match=r"(?s)absent cannot be imported: No module named.*pip install thing"):
        chosen("absent")
    assert "absent" not in {peer.name for peer in chosen("all")}


def test_a_peer_refuses_a_set_that_it_does_not_read(raw_sample_set: Path, tmp_path: Path) -> None:
    wanted = Asked(ShardSet.open(raw_sample_set), tmp_path)

    with pytest.raises(WrongCall, match="dali-region does not read raw sets"), PEERS["dali-region"].open(wanted):
        pass


def test_peers_want_the_shards_in_a_folder(sample_set: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(sample_set, copy)
    wanted = Asked(ShardSet.open(copy), tmp_path)
    (copy / "train-000000.tar").unlink()

    with pytest.raises(WrongCall, match=r"train-000000\.tar is not in a folder"), PEERS["torch"].open(wanted):
        pass


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["torch", "torchdata"])  # their batches are drawn in this process
def test_a_peer_at_rest_has_no_more_batches_ready_than_are_left_out(
    name: str, sample_set: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn, draw = count(1), _Permutations.__iter__
    samples = [0]

    def noting(self: _Permutations) -> Iterator[int]:
        for sample in draw(self):
            samples[0] = next(drawn)
            yield sample

    monkeypatch.setattr(_Permutations, "__iter__", noting)
    peer = able(PEERS[name])
    with peer.open(Asked(ShardSet.open(sample_set), tmp_path, batch_size=4, threads=5)) as batches:
        taken = len(list(islice(batches, 3)))
        assert settled(limit_s=60)
        ready = samples[0] // 4 - taken

    assert 6 < ready <= peer.ahead(5)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["torch", "torchdata", "spdl"])
def test_a_peer_that_is_closed_leaves_no_thread_behind(name: str, sample_set: Path, tmp_path: Path) -> None:
    peer = able(PEERS[name])
    before = set(threading.enumerate())
    with peer.open(Asked(ShardSet.open(sample_set), tmp_path, batch_size=4)) as batches:
        next(batches)
        during = set(threading.enumerate())

    assert during - before
    for thread in during - before:
        thread.join(60)
    assert not set(threading.enumerate()) & (during - before)
    assert batches  # held until here: leaving is enough


def test_peers_that_have_made_enough_ahead_are_waited_for(sample_set: Path, tmp_path: Path) -> None:
    with PEERS["torch"].open(Asked(ShardSet.open(sample_set), tmp_path, batch_size=BATCH)) as batches:
        assert settled(limit_s=60)
        assert not settled(limit_s=0)
        assert len(next(batches).images) == BATCH


def test_the_limits_count_images(sample_set: Path, tmp_path: Path) -> None:
    wanted = Asked(ShardSet.open(sample_set), tmp_path, batch_size=BATCH)

    assert Decoding(wanted).images_per_s(0.01) > 0
    assert Moving(wanted).images_per_s(0.01) > 0


def test_the_page_tells_of_every_peer() -> None:
    page = PAGE.read_text(encoding="utf-8")

    assert [name for name in PEERS if f"`{name}`" not in page] == []
