"""Peers whose images are decoded by Pillow in workers: torch, torchdata, webdataset, Hugging Face, LitData.

Each is driven as its documentation shows, with the fastest way through Pillow and torch that was found: Pillow
crops and mirrors (NumPy's copy of a mirrored picture takes ten times as long), torch turns planes and subtracts.
"""

from __future__ import annotations

import warnings
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing, contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from ..shards import ppm_pixels
from .loader_peers_common import Asked, Draws, Peer, PeerBatch, StoredFiles, nchw, needed

_SHUFFLE_BUFFER = 1000  # samples, of those that shuffle in a stream


class Finish:
    """A stored file as a finished image: float32 (3, S, S), or uint8 (S, S, 3), contiguous."""

    def __init__(self, asked: Asked) -> None:
        self._draws, self._side, self._raw, self._floats = Draws(asked), asked.side, asked.raw, asked.floats

    def __call__(self, file: bytes) -> torch.Tensor:
        drawn, side = self._draws(), self._side
        if self._raw:
            stored = ppm_pixels(memoryview(file))
            image = Image.frombuffer("RGB", stored.shape[1::-1], stored, "raw", "RGB", 0, 1)
        else:
            image = Image.open(BytesIO(file))
        image = image.crop((drawn.x, drawn.y, drawn.x + side, drawn.y + side))
        if drawn.mirror:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        pixels = torch.from_numpy(np.array(image))
        if not self._floats:
            return pixels
        planes = pixels.permute(2, 0, 1).contiguous().float()
        return planes.sub_(torch.from_numpy(drawn.offset)[:, None, None])


class _Batches:
    """What a worker's images become in the end."""

    def __init__(self, asked: Asked) -> None:
        self._floats = asked.floats

    def __call__(self, loaded: Sequence[torch.Tensor]) -> PeerBatch:
        images, labels = loaded
        return PeerBatch(images if self._floats else nchw(images), labels)


def _endless(loader: Any, asked: Asked) -> Generator[PeerBatch, None, None]:
    """Epoch after epoch of something to iterate over."""
    finished = _Batches(asked)
    while True:
        with warnings.catch_warnings():  # Python 3.12 on warns of forking beside threads
            warnings.simplefilter("ignore", DeprecationWarning)
            batches = iter(loader)
        for loaded in batches:
            yield finished(loaded)


def _workers(asked: Asked) -> dict[str, Any]:
    """Of torch's DataLoader: as many processes as others have threads, which stay from epoch to epoch."""
    return {
        "num_workers": asked.threads,
        "multiprocessing_context": "fork",
        "persistent_workers": True,
        "prefetch_factor": 2,
    }


class _Permutations(torch.utils.data.Sampler[int]):
    """Permutation after permutation, so that no epoch's end stops the workers."""

    def __init__(self, asked: Asked) -> None:
        self._samples, self._seed = asked.samples, asked.seed

    def __iter__(self) -> Iterator[int]:
        generator = np.random.default_rng(self._seed)
        while True:
            yield from generator.permutation(self._samples).tolist()


class _Pictures(torch.utils.data.Dataset[tuple[torch.Tensor, int]]):
    """Any image by its place on disk, found by the index."""

    def __init__(self, asked: Asked) -> None:
        self.files, self._finish = StoredFiles(asked), Finish(asked)

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, sample: int) -> tuple[torch.Tensor, int]:
        return self._finish(self.files.file(sample)), int(self.files.labels[sample])


@contextmanager
def _torch(asked: Asked) -> Iterator[Iterator[PeerBatch]]:
    pictures = _Pictures(asked)
    loader = torch.utils.data.DataLoader(
        pictures, asked.batch_size, sampler=_Permutations(asked), drop_last=True, **_workers(asked)
    )
    with closing(pictures.files), closing(_endless(loader, asked)) as batches:
        yield batches


@contextmanager
def _torchdata(asked: Asked) -> Iterator[Iterator[PeerBatch]]:
    nodes = needed("torchdata.nodes")
    pictures, finished = _Pictures(asked), _Batches(asked)

    def batch(samples: list[int]) -> PeerBatch:
        return finished(torch.utils.data.default_collate([pictures[sample] for sample in samples]))

    def batches() -> Generator[PeerBatch, None, None]:
        node = nodes.Batcher(nodes.IterableWrapper(_Permutations(asked)), batch_size=asked.batch_size)
        node = nodes.ParallelMapper(node, batch, num_workers=asked.threads, method="thread", prebatch=None)
        yield from nodes.Prefetcher(node, prefetch_factor=2)  # its threads end when nobody holds it any more

    with closing(pictures.files), closing(batches()) as endless:
        yield endless


class _Member:
    """A sample of a stream as webdataset hands it on, finished."""

    def __init__(self, asked: Asked) -> None:
        self._finish, self._extension = Finish(asked), asked.extension

    def __call__(self, sample: dict[str, Any]) -> tuple[torch.Tensor, int]:
        return self._finish(sample[self._extension]), int(sample.get("cls", b"-1"))


@contextmanager
def _webdataset(asked: Asked) -> Iterator[Iterator[PeerBatch]]:
    wds = needed("webdataset")
    shards = [str(path) for path in asked.shards]
    # An empty share is no error: there may be fewer shards than workers.
    dataset = wds.WebDataset(shards, shardshuffle=len(shards), seed=asked.seed, empty_check=False)
    dataset = dataset.shuffle(_SHUFFLE_BUFFER, seed=asked.seed).map(_Member(asked))
    dataset = dataset.repeat().batched(
        asked.batch_size, partial=False, collation_fn=torch.utils.data.default_collate
    )
    loader = wds.WebLoader(dataset, batch_size=None, **_workers(asked))
    with closing(_endless(loader, asked)) as batches:
        yield batches


class _Rows:
    """Collates rows of a Hugging Face data set, in the worker."""

    def __init__(self, asked: Asked) -> None:
        self._finish, self._extension = Finish(asked), asked.extension

    def __call__(self, rows: list[dict[str, Any]]) -> list[torch.Tensor]:
        images = torch.stack([self._finish(row[self._extension]["bytes"]) for row in rows])
        return [images, torch.tensor([row.get("cls", -1) for row in rows])]


@contextmanager
def _datasets(asked: Asked) -> Iterator[Iterator[PeerBatch]]:
    datasets = needed("datasets")
    stream = datasets.load_dataset(
        "webdataset",
        data_files={"train": [str(path) for path in asked.shards]},
        split="train",
        streaming=True,
        cache_dir=str(asked.cache / "datasets"),
    )
    stream = stream.cast_column(asked.extension, datasets.Image(decode=False))
    stream = stream.shuffle(seed=asked.seed, buffer_size=_SHUFFLE_BUFFER)
    loader = torch.utils.data.DataLoader(
        stream, asked.batch_size, collate_fn=_Rows(asked), drop_last=True, **_workers(asked)
    )
    with closing(_endless(loader, asked)) as batches:
        yield batches


@contextmanager
def _litdata(asked: Asked) -> Iterator[Iterator[PeerBatch]]:
    litdata = needed("litdata")
    folder = asked.cache / f"litdata-{asked.shard_set.digest[:16]}-{asked.split}"
    if not (folder / "index.json").is_file():
        _write_for_litdata(asked, folder)
    finish = Finish(asked)

    class Chunks(litdata.StreamingDataset):  # type: ignore[misc, name-defined]
        def __getitem__(self, index: Any) -> tuple[torch.Tensor, int]:
            row = super().__getitem__(index)
            return finish(row["file"]), row["label"]

    chunks = Chunks(str(folder), shuffle=True, drop_last=False, seed=asked.seed)
    loader = litdata.StreamingDataLoader(chunks, batch_size=asked.batch_size, drop_last=True, **_workers(asked))
    with closing(_endless(loader, asked)) as batches:
        yield batches


def _write_for_litdata(asked: Asked, folder: Path) -> None:
    writer = needed("litdata.streaming.writer").BinaryWriter(str(folder), chunk_bytes="64MB")
    with closing(StoredFiles(asked)) as files:
        for sample in range(len(files)):
            writer[sample] = {"file": files.file(sample), "label": int(files.labels[sample])}
    writer.done()
    writer.merge()


PYTHON_PEERS = (
    Peer(
        name="torch",
        about="torch DataLoader over our index, Pillow in forked workers, their batches by shared memory",
        lacks="resuming, draws that do not depend on the workers",
        modules=("torch", "PIL"),
        package=("torch",),
        run=_torch,
        ahead_per_thread=2,
    ),
    Peer(
        name="torchdata",
        about="torchdata.nodes over our index, Pillow in threads, a batch a thread",
        lacks="draws that do not depend on the threads",
        modules=("torchdata.nodes", "PIL"),
        package=("torchdata",),
        run=_torchdata,
        ahead_per_thread=2,
    ),
    Peer(
        name="webdataset",
        about="webdataset over our tars: shards shuffled, buffer of 1,000, Pillow in forked workers",
        lacks="a global shuffle, exact epochs",
        modules=("webdataset", "PIL"),
        package=("webdataset",),
        run=_webdataset,
        ahead_per_thread=2,
        exact=False,
    ),
    Peer(
        name="datasets",
        about="Hugging Face datasets, streaming over our tars: buffer of 1,000, Pillow in forked workers",
        lacks="a global shuffle",
        modules=("datasets", "PIL"),
        package=("datasets",),
        run=_datasets,
        ahead_per_thread=2,
        exact=False,
    ),
    Peer(
        name="litdata",
        about="LitData's StreamingDataset over its own chunks of our files, Pillow in forked workers",
        lacks="a global shuffle (chunks, then inside a chunk); reading our tars",
        modules=("litdata", "PIL"),
        package=("litdata",),
        run=_litdata,
        ahead_per_thread=2,
        exact=False,
        copies=True,
    ),
)
