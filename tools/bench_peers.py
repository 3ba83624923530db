"""Packers of others, for `tools/bench_build`: each makes the central 256×256 of every image, JPEG quality 90.

`python -m alexshard.tools.bench_peers NAME ARCHIVE OUT WORKERS` runs one; its figures are those of that process.
"""

from __future__ import annotations

import io
import os
import sys
import tarfile
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from importlib.util import find_spec
from multiprocessing import get_context
from pathlib import Path
from typing import Any

SIDE, QUALITY = 256, 90


@dataclass(frozen=True, slots=True)
class Peer:
    """One packer: what it needs to be installed, and how it runs."""

    name: str
    modules: tuple[str, ...]
    pack: Callable[[Path, Path, int], None]  # archive, new folder, workers

    def lacks(self) -> str:
        """What is not installed; "": nothing."""
        missing = [module for module in self.modules if find_spec(module) is None]
        return f"not installed: {', '.join(missing)}" if missing else ""


def images_of_archive(archive: Path, share: int = 0, shares: int = 1) -> Iterator[bytes]:
    """The images of a nested archive, or every `shares`-th of its classes; read by the standard library."""
    with tarfile.open(archive) as outer:
        for number, member in enumerate(outer):
            if number % shares != share:
                continue
            inner = outer.extractfile(member)
            assert inner is not None
            with tarfile.open(fileobj=inner) as nested:
                for image in nested:
                    file = nested.extractfile(image)
                    assert file is not None
                    yield file.read()


def pack_with_webdataset(archive: Path, out: Path, workers: int) -> None:
    """Pillow and webdataset's ShardWriter, as its documentation shows, one writer a process."""
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        shares = [pool.submit(_webdataset_share, archive, out, share, workers) for share in range(workers)]
        for future in shares:
            future.result()


def _webdataset_share(archive: Path, out: Path, share: int, shares: int) -> None:
    import webdataset
    from PIL import Image

    pattern = str(out / f"{share}-%06d.tar")
    with webdataset.ShardWriter(pattern, maxcount=5000, verbose=0) as sink:
        for number, data in enumerate(images_of_archive(archive, share, shares)):
            image = Image.open(io.BytesIO(data)).convert("RGB")
            scale = SIDE / min(image.size)
            width, height = (round(length * scale) for length in image.size)
            image = image.resize((width, height), Image.Resampling.BICUBIC)
            left, top = (width - SIDE) // 2, (height - SIDE) // 2
            jpeg = io.BytesIO()
            image.crop((left, top, left + SIDE, top + SIDE)).save(jpeg, "JPEG", quality=QUALITY)
            sink.write({"__key__": f"{share}-{number:08d}", "jpg": jpeg.getvalue(), "cls": 0})


class _Images:
    """An indexed data set of (image, label), as FFCV's writer wants it."""

    def __init__(self, archive: Path) -> None:
        self.archive, self.places = archive, list[tuple[int, int]]()
        with tarfile.open(archive) as outer:
            for member in outer:
                inner = outer.extractfile(member)
                assert inner is not None
                with tarfile.open(fileobj=inner) as nested:
                    self.places += [(member.offset_data + image.offset_data, image.size) for image in nested]

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, number: int) -> tuple[Any, int]:
        from PIL import Image

        offset, size = self.places[number]
        with self.archive.open("rb") as file:
            data = os.pread(file.fileno(), size, offset)
        return Image.open(io.BytesIO(data)).convert("RGB"), 0


def pack_with_ffcv(archive: Path, out: Path, workers: int) -> None:
    """FFCV's writer; it keeps the shorter side at 256 and cuts nothing off."""
    from ffcv.fields import IntField, RGBImageField
    from ffcv.writer import DatasetWriter

    field = RGBImageField(write_mode="jpg", max_resolution=SIDE, jpeg_quality=QUALITY)
    writer = DatasetWriter(str(out / "set.beton"), {"image": field, "label": IntField()}, num_workers=workers)
    writer.from_indexed_dataset(_Images(archive))


def pack_with_img2dataset(archive: Path, out: Path, workers: int) -> None:
    """img2dataset to webdataset shards; it reads from addresses, here from files of this machine."""
    from img2dataset import download

    files = out / "files"
    files.mkdir()
    addresses = []
    for number, data in enumerate(images_of_archive(archive)):
        path = files / f"{number:08d}.jpg"
        path.write_bytes(data)
        addresses.append(path.resolve().as_uri())
    (out / "addresses.txt").write_text("\n".join(addresses) + "\n")
    download(
        url_list=str(out / "addresses.txt"),
        input_format="txt",
        output_folder=str(out / "shards"),
        output_format="webdataset",
        image_size=SIDE,
        resize_mode="center_crop",
        encode_quality=QUALITY,
        processes_count=workers,
        thread_count=4,
        number_sample_per_shard=max(len(addresses) // 4, 1),
        enable_wandb=False,
    )


PEERS = (
    Peer("Pillow and webdataset's ShardWriter", ("webdataset",), pack_with_webdataset),
    Peer("FFCV's writer", ("ffcv",), pack_with_ffcv),
    Peer("img2dataset", ("img2dataset",), pack_with_img2dataset),
)

if __name__ == "__main__":
    name, archive, out, workers = sys.argv[1:]
    next(peer for peer in PEERS if peer.name == name).pack(Path(archive), Path(out), int(workers))
