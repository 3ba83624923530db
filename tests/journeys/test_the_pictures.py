"""Whether each packed picture is its original's: right image, right replacement, right colours, right place."""

from __future__ import annotations

import gzip
import io
import json
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from alexshard.shards import read_rows
from numpy.typing import NDArray
from PIL import Image

# Broken EXIF and stray bytes are among the oddities; a reader has to live with them.
pytestmark = pytest.mark.filterwarnings("ignore:Corrupt EXIF|Truncated File Read|Tag data larger:UserWarning")

CELLS = 16  # pictures are compared as so many by so many mean colours
# Mean difference over the cells, of 255; a picture and its packed form differ by 2.5 at most, others by 10.
LEVELS = 4


def files(archive: tarfile.TarFile) -> Iterator[tuple[str, bytes]]:
    for member in archive:
        if member.isfile():
            file = archive.extractfile(member)
            assert file is not None
            yield member.name, file.read()


def originals(source: Path) -> dict[str, bytes]:
    """{file name: bytes} of every image of the ILSVRC2010 archives in a folder, patches in place."""
    found: dict[str, bytes] = {}
    with tarfile.open(source / "ILSVRC2010_images_train.tar") as outer:
        for _, inner in files(outer):
            with tarfile.open(fileobj=io.BytesIO(inner)) as archive:
                found.update(files(archive))
    for name in ("ILSVRC2010_images_val.tar", "ILSVRC2010_images_test.tar", "patch_images.tar"):
        with tarfile.open(source / name) as archive:
            found.update((Path(path).name, data) for path, data in files(archive))
    return found


def cells(data: bytes) -> NDArray[np.float64]:
    """Mean colours of the central square, (CELLS, CELLS, 3), by Pillow alone."""
    if data.startswith(b"\x1f\x8b"):
        data = gzip.decompress(data)
    image = Image.open(io.BytesIO(data)).convert("RGB")
    width, height = image.size
    side = min(width, height)
    left, top = (width - side) / 2, (height - side) / 2
    # First to the packed side: cells cut straight from a tiny image would depend on where its few pixels end.
    square = image.resize((256, 256), Image.Resampling.BICUBIC, box=(left, top, left + side, top + side))
    return np.asarray(square.resize((CELLS, CELLS), Image.Resampling.BOX), dtype=np.float64)


@pytest.mark.parametrize("kind", ["drawn", "2010"])
def test_every_packed_picture_is_that_of_its_original(
    kind: str, request: pytest.FixtureRequest, make_desk: Callable[[str], Any]
) -> None:
    desk = make_desk(f"pictures-{kind}")
    if kind == "drawn":
        desk.type("alexshard sample source --train 120 --val 30 --test 20")
        source = desk.folder / "source"
    else:
        source = request.getfixturevalue("assembled")(kind)
    desk.type(f"alexshard build '{source}' --out set")
    expected = json.loads((source / "EXPECTED.json").read_text(encoding="utf-8"))
    packed: dict[tuple[str, str], bytes] = {}
    for path in (desk.folder / "set").glob("*.tar"):
        with tarfile.open(path) as archive:
            packed.update(((path.name, name), data) for name, data in files(archive))

    wanted = originals(source)
    rows = list(read_rows(desk.folder / "set" / "samples.tsv"))
    assert len(rows) == sum(split["images"] for split in expected["splits"].values())
    different = {}
    for row in rows:
        name = Path(row.original).name
        difference = np.abs(cells(packed[row.shard, f"{row.key}.jpg"]) - cells(wanted[name])).mean()
        if difference > LEVELS:
            different[name] = difference
    assert not different
