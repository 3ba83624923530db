"""`alexshard verify --deep`: the set as a stranger reads it, by the `webdataset` library, every image decoded."""

from __future__ import annotations

import threading
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from ..shards import NO_LABEL, Problem, ShardFiles, ShardSet, SplitIndex, usable_cores


def deep_verify(shard_set: ShardSet, *, on_samples: Callable[[int], None] = lambda _number: None) -> list[Problem]:
    """Read every sample with webdataset, decode it, and compare key, label and size with what the set promises.

    The stored bytes of each image are held against the CRC-32 that was noted when it was packed.

    Args:
        shard_set: an opened set.
        on_samples: called, from any thread, with the number of samples read since the last call.
    """
    units = [
        (index, place)
        for split in shard_set.manifest.splits
        for index in [shard_set.index(split)]
        for place in range(len(index.shards))
    ]
    stop = threading.Event()
    # Decoding leaves Python's lock, so threads serve; each has a shard of its own.
    with ThreadPoolExecutor(usable_cores()) as pool:
        futures = [pool.submit(_check_shard, shard_set, index, place, on_samples, stop) for index, place in units]
        try:
            return [problem for future in futures for problem in future.result()]
        except BaseException:
            stop.set()
            pool.shutdown(cancel_futures=True)
            raise


def _check_shard(
    shard_set: ShardSet, index: SplitIndex, place: int, on_samples: Callable[[int], None], stop: threading.Event
) -> list[Problem]:
    path, side = shard_set.path / index.shards[place].name, shard_set.manifest.image.side
    positions = np.flatnonzero(index.shard == place).tolist()
    expected = {index.keys[position]: position for position in positions}
    problems: list[Problem] = []

    def report(key: str | None, what: str) -> None:
        position = None if key is None else expected.get(key)
        offset = None if position is None else int(index.offset[position])
        problems.append(Problem(path.name, what, offset, key))

    read: list[str] = []
    for key, image_size, label in _samples(path, labelled=bool(np.any(index.label != NO_LABEL)), report=report):
        if stop.is_set():
            break
        on_samples(1)
        read.append(key)
        if key not in expected:
            report(key, "webdataset reads a sample that the index does not know")
            continue
        promised = int(index.label[expected[key]])
        if label != promised:
            report(key, f"webdataset reads label {label}, the set promises {promised}")
        if image_size != (side, side):
            report(key, f"decodes to {image_size[0]}×{image_size[1]} pixels, not {side}×{side}")
    reported, given = {problem.key for problem in problems}, set(read)
    with ShardFiles(index, shard_set.shelf) as stored:
        for position in positions:
            key = index.keys[position]
            if key in given - reported and zlib.crc32(stored.bytes_of(position)) != index.crc32[position]:
                report(key, "its image has another CRC-32 than samples.tsv says")
    for key in expected.keys() - set(read) - reported:
        report(key, "webdataset does not give this sample")
    if len(read) != len(set(read)):
        report(None, f"webdataset gives {len(read) - len(set(read))} samples twice")
    return problems


def _samples(
    path: Path, *, labelled: bool, report: Callable[[str | None, str], None]
) -> Iterator[tuple[str, tuple[int, int], int]]:
    """(key, (width, height), label) of every sample that webdataset can read; label -1 where there is none."""
    import webdataset

    def tell(error: Exception) -> bool:
        cause = error.__cause__ or error
        # Only the first argument: webdataset appends its open files to the others.
        said = f"{type(cause).__name__}: {cause.args[0]}" if cause.args else type(cause).__name__
        report(getattr(error, "key", None), f"webdataset cannot read this: {said}")
        return True  # go on with the next sample

    fields = ["__key__", "jpg;ppm"] + (["cls"] if labelled else [])
    # A list, since webdataset would expand braces in a string.
    dataset = webdataset.WebDataset([str(path.resolve())], shardshuffle=False, empty_check=False, handler=tell)
    for key, image, *label in dataset.decode("pil", handler=tell).to_tuple(*fields, handler=tell):
        yield key, image.size, label[0] if label else NO_LABEL
