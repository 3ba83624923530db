"""The example in shards/README.md is what the writer writes."""

from __future__ import annotations

import json
from pathlib import Path

import alexshard.shards
import pytest
from alexshard.shards import Sample, SampleRow, ShardName, ShardWriter, Split
from alexshard.shards.rows import rows_text

from .conftest import Tiny

PAGE = (Path(alexshard.shards.__file__).parent / "README.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def example(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The folder with the shard of the example, and the text of its samples.tsv."""
    folder = tmp_path_factory.mktemp("example")
    samples = [
        Sample("n02102040_7", 1, b"\xff\xd8\xff" + bytes(range(253)) * 3, "jpg"),
        Sample("its_a_tench", 0, b"\xff\xd8\xff\xe0", "jpg"),
    ]
    originals = ["n02102040_7.JPEG", "it's a tench.JPEG"]
    rows = []
    with ShardWriter(folder, ShardName(Split.TRAIN, 0)) as writer:
        for sample, original in zip(samples, originals, strict=True):
            crc32 = writer.write(sample)
            rows.append(SampleRow(sample.key, sample.label or 0, "train", str(writer.name), original, "", crc32))
    return folder, rows_text(rows)


def test_the_index_on_the_page_is_what_the_writer_writes(example: tuple[Path, str]) -> None:
    assert (example[0] / "train-000000.idx").read_text() in PAGE


def test_the_rows_on_the_page_are_what_the_writer_writes(example: tuple[Path, str]) -> None:
    assert example[1].replace("\t", "⇥") in PAGE


def test_the_bytes_on_the_page_are_those_of_the_first_header(example: tuple[Path, str]) -> None:
    header = (example[0] / "train-000000.tar").read_bytes()[:512]
    shown = {}
    for line in PAGE.splitlines():
        offset, _, rest = line.strip().partition(": ")
        if len(offset) == 4 and rest:
            shown[int(offset, 16)] = bytes.fromhex(rest.split("  ")[0])

    assert shown
    assert all(header[at : at + len(part)] == part for at, part in shown.items())
    covered = {at + i for at, part in shown.items() for i in range(len(part))}
    assert {i for i, byte in enumerate(header) if byte} <= covered


def test_every_field_of_the_manifest_is_on_the_page(tiny: Tiny) -> None:
    fields = json.loads((tiny.path / "manifest.json").read_bytes())
    table = PAGE.partition("## manifest.json")[2].partition("## ")[0]

    assert {name for name in fields if f"`{name}`" not in table} == set()
    assert list(fields)[-2:] == ["crc32", "digest"]  # damage is located in them by their distance from the end


def test_every_file_of_a_set_is_on_the_page(tiny: Tiny) -> None:
    listing = PAGE.partition("ilsvrc2010/")[2].partition("Without")[0]
    names = {path.name for path in tiny.path.iterdir() if path.suffix not in {".tar", ".idx"}}

    assert {name for name in names if name not in listing} == set()
