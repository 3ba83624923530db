"""Small sources for the tests of packing: pictures of waves in archives or folders."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from alexshard.shards import ImageFormat
from alexshard.tools.packing import BuildReport, BuildSettings, MaxBad, build, plan_build
from numpy.typing import NDArray
from PIL import Image
from scipy.io import savemat

WNIDS = ("n00000001", "n00000002", "n00000003")
DEVKIT_IDS = {"n00000001": 2, "n00000002": 3, "n00000003": 1}  # in no order, as in the real kits
SMALL = ImageFormat(32, "jpeg", 90, "4:2:0")
SMALL_RAW = ImageFormat(32, "raw")


def pixels(number: int, width: int = 48, height: int = 40) -> NDArray[np.uint8]:
    """A smooth picture of its own for every number; uint8 (height, width, 3)."""
    y, x = np.mgrid[0:height, 0:width] / 48.0
    rates = np.random.default_rng(number).uniform(1, 6, (3, 3))
    waves = [np.sin(a * x + b * y + 3 * c) for a, b, c in rates]
    return np.asarray(np.stack(waves, axis=2) * 110 + 128, dtype=np.uint8)


def jpeg(number: int, width: int = 48, height: int = 40, **options: Any) -> bytes:
    return encoded(Image.fromarray(pixels(number, width, height)), "JPEG", **options)


def encoded(image: Image.Image, file_format: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, file_format, **options)
    return buffer.getvalue()


def tar_bytes(contents: Iterable[tuple[str, bytes]]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, data in contents:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def meta_mat(ids: Mapping[str, int], internal: str = "n00009999", year: int = 2012) -> bytes:
    """A development kit's table: leaves by id, then one internal synset above them."""
    fields = [(name, object) for name in (f"ILSVRC{year}_ID", "WNID", "words", "num_children")]
    leaves = [(number, wnid, f"words of {wnid}", 0) for wnid, number in sorted(ids.items(), key=lambda i: i[1])]
    rows = [*leaves, (1001, internal, "entity", len(leaves))]
    buffer = io.BytesIO()
    savemat(buffer, {"synsets": np.array(rows, dtype=fields).reshape(-1, 1)})
    return buffer.getvalue()


def ilsvrc(
    dest: Path,
    train: Mapping[str, Iterable[tuple[str, bytes]]] | None = None,
    *,
    val: int = 4,
    truth: Iterable[int] | None = (2, 3, 1, 2, 3, 1),
    ids: Mapping[str, int] | None = None,
) -> Path:
    """A source in the layout of ILSVRC2012: three classes of four images, four of val, six lines of truth."""
    dest.mkdir(parents=True, exist_ok=True)
    train = named_images() if train is None else train
    inner = [(f"{wnid}.tar", tar_bytes(images)) for wnid, images in reversed(list(train.items()))]
    (dest / "ILSVRC2012_img_train.tar").write_bytes(tar_bytes(inner))
    names = [(f"ILSVRC2012_val_{number:08d}.JPEG", jpeg(100 + number)) for number in range(val, 0, -1)]
    if names:
        (dest / "ILSVRC2012_img_val.tar").write_bytes(tar_bytes(names))
    kit = [("kit/data/meta.mat", meta_mat(DEVKIT_IDS if ids is None else ids))]
    if truth is not None:
        lines = "".join(f"{line}\n" for line in truth).encode()
        kit.append(("kit/data/ILSVRC2012_validation_ground_truth.txt", lines))
    (dest / "ILSVRC2012_devkit_t12.tar").write_bytes(tar_bytes(kit))
    return dest


def named_images(per_class: int = 4) -> dict[str, list[tuple[str, bytes]]]:
    """Training images: wnid to (name, bytes)."""
    return {
        wnid: [(f"{wnid}_{i}.JPEG", jpeg(10 * place + i)) for i in range(per_class)]
        for place, wnid in enumerate(WNIDS)
    }


def folders(dest: Path, contents: Mapping[str, Mapping[str, bytes]]) -> Path:
    """Folder ("train/cat" or "cat") to file name to bytes."""
    for folder, files in contents.items():
        (dest / folder).mkdir(parents=True, exist_ok=True)
        for name, data in files.items():
            path = dest / folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
    return dest


def pack(
    source: Path,
    out: Path,
    *,
    image: ImageFormat = SMALL,
    workers: int = 1,
    max_bad: str = "0.1%",
    **settings: Any,
) -> BuildReport:
    """Build a shard set as the command does."""
    plan = plan_build(
        BuildSettings(source=source, out=out, image=image, max_bad=MaxBad.parse(max_bad), **settings)
    )
    return build(plan, workers=workers, on_progress=lambda *_: None)


def files_of(folder: Path) -> dict[str, bytes]:
    """Every file below a folder, by its relative path."""
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
