"""Indexes and samples.tsv read at once give what they give line by line, or are not understood at all."""

from __future__ import annotations

import hashlib
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
from alexshard.shards import IndexEntry, SampleRow, ShardEntry, index_text, read_index, read_rows
from alexshard.shards import table as tables
from alexshard.shards.manifest import file_entry
from alexshard.shards.rows import rows_text
from alexshard.shards.table import Keys, NotPlain, read_indexes, read_row_columns
from hypothesis import given, settings
from hypothesis.strategies import booleans, from_regex, integers, lists, text

KEYS = from_regex(r"[A-Za-z0-9_][A-Za-z0-9_-]{0,79}", fullmatch=True)


def written(folder, counts, keys, *, labelled, original="a.JPEG"):
    """A split `val` of so many samples a shard, after a split `train` of three; its entries and its rows."""
    entries, rows, place = [], [], 0
    for number, count in enumerate(counts):
        samples, name = [], f"val-{number:06d}.tar"
        for key in keys[place : place + count]:
            label = place % 1000 if labelled else -1
            members = [IndexEntry(key, "jpg", 512 * (place + 1), 10 ** (place % 9))]
            samples.append([*members, *([IndexEntry(key, "cls", 512, 3)] if labelled else [])])
            rows.append(SampleRow(key, label, "val", name, original, "", place * 0x9E3779B1 % 2**32))
            place += 1
        text = index_text(samples).encode("ascii")
        (folder / f"val-{number:06d}.idx").write_bytes(text)
        entries.append(ShardEntry(name, count, 10**12, "", hashlib.sha256(text).hexdigest()))
    others = [SampleRow(f"t{i}", i, "train", "train-000000.tar", "val", "val", i) for i in range(3)]
    (folder / "samples.tsv").write_bytes(rows_text([*others, *rows]).encode("utf-8", "surrogateescape"))
    return entries, rows


def at_once(folder, entries, *, labelled):
    found = read_indexes(folder, entries, extension="jpg", labelled=labelled)
    promised = file_entry((folder / "samples.tsv").read_bytes())
    label, crc32 = read_row_columns(folder / "samples.tsv", promised, split="val", first=3, keys=found.keys)
    return found, label, crc32


@settings(max_examples=60, deadline=None)
@given(
    counts=lists(integers(1, 5), max_size=4),
    names=lists(KEYS, min_size=20, max_size=20, unique=True),
    labelled=booleans(),
    original=text(max_size=30),
    block=integers(400, 2000),
)
def test_columns_are_what_the_lines_say_wherever_blocks_end(counts, names, labelled, original, block):
    with TemporaryDirectory() as made, pytest.MonkeyPatch.context() as patched:
        folder = Path(made)
        patched.setattr(tables, "_BLOCK", block)
        entries, rows = written(folder, counts, names, labelled=labelled, original=original)
        found, label, crc32 = at_once(folder, entries, labelled=labelled)
        by_line = [
            read_index(folder / f"val-{number:06d}.idx", extension="jpg", labelled=labelled)
            for number in range(len(counts))
        ]
        assert rows == list(read_rows(folder / "samples.tsv", split="val"))

    assert [key for part in by_line for key in part.keys] == list(found.keys)
    assert [row.key for row in rows] == list(found.keys)
    assert [row.label for row in rows] == label.tolist()
    assert [row.crc32 for row in rows] == crc32.tolist()
    assert [int(at) for part in by_line for at in part.offset] == found.offset.tolist()
    assert [int(size) for part in by_line for size in part.size] == found.size.tolist()


NAMES = [f"n0_{number}" for number in range(6)]


@pytest.mark.parametrize(
    ("was", "is_now"),
    [
        (b"v1.2 3", b"v1.3 3"),
        (b"v1.2 3", b"v1.2 4"),
        (b"v1.2 3\n", b"v1.2 3\n\n"),
        (b"jpg 512", b"jpeg 512"),
        (b"jpg 512", b"jpg  512"),
        (b"jpg 512", b"jpg -512"),
        (b"jpg 512", b"jpg 5:2"),
        (b"jpg 512", b"jpg " + b"9" * 19),
        (b"n0_0.jpg", b"n0_0.png"),
        (b"n0_0.jpg", b".jpg"),
        (b"n0_0.jpg", b"n\xe9.jpg"),
        (b" cls ", b" txt "),
        (b" cls ", b"\ncls "),
        (b"n0_0.cls\n", b"n0_0.cls\r\n"),
        (b"n0_0.cls\n", b"n0_0.cls "),
        (b"n0_2.cls\n", b"n0_2.cls"),
        (b"n0_2.cls\n", b"n0_2.cls\njpg 1 1 a.jpg cls 1 1 a.cls\n"),
    ],
)
def test_an_index_in_another_form_is_not_understood(tmp_path, was, is_now):
    entries, _ = written(tmp_path, [3, 3], NAMES, labelled=True)
    path = tmp_path / "val-000000.idx"
    text = path.read_bytes()
    assert was in text
    path.write_bytes(text.replace(was, is_now, 1))
    # As if it had been packed so: its form alone is in question.
    promised = hashlib.sha256(path.read_bytes()).hexdigest()
    told = [ShardEntry("val-000000.tar", 3, 10**12, "", promised), entries[1]]

    with pytest.raises(NotPlain):
        read_indexes(tmp_path, told, extension="jpg", labelled=True)


@pytest.mark.parametrize(
    ("was", "is_now"),
    [
        (b"key\t", b"Key\t"),
        (b"n0_1\t", b"n0_2\t"),
        (b"n0_1\t", b"n0_11\t"),
        (b"n0_1\t1\t", b"n0_1\t-1\t"),
        (b"n0_1\t1\t", b"n0_1\tx\t"),
        (b"n0_1\t1\tval\t", b"n0_1\t1\tvan\t"),
        (b"n0_1\t1\tval\t", b"n0_1\t1\ttest\t"),
        (b"\t9e3779b1\n", b"\t9E3779B1\n"),
        (b"\t9e3779b1\n", b"\t9e3779b\n"),
        (b"\t9e3779b1\n", b"\t9e3779b1\t\n"),
        (b"\t9e3779b1\n", b"\t9e3779b1\n\n"),
        (b"t1\t1\ttrain", b"n0_0\t0\tval"),
    ],
)
def test_rows_in_another_form_are_not_understood(tmp_path, was, is_now):
    entries, _ = written(tmp_path, [3, 3], NAMES, labelled=True)
    path = tmp_path / "samples.tsv"
    text = path.read_bytes()
    assert was in text
    path.write_bytes(text.replace(was, is_now, 1))
    if was.startswith(b"t1"):  # of another split: told by the promised CRC-32 alone
        keys = read_indexes(tmp_path, entries, extension="jpg", labelled=True).keys
        with pytest.raises(NotPlain):
            read_row_columns(path, file_entry(text), split="val", first=3, keys=keys)
        return

    with pytest.raises(NotPlain):
        at_once(tmp_path, entries, labelled=True)


@pytest.mark.parametrize("cut", [1, 30, 200])
def test_rows_that_end_too_early_are_not_understood(tmp_path, cut):
    entries, _ = written(tmp_path, [3, 3], NAMES, labelled=True)
    path = tmp_path / "samples.tsv"
    path.write_bytes(path.read_bytes()[:-cut])

    with pytest.raises(NotPlain):
        at_once(tmp_path, entries, labelled=True)


def test_any_flipped_bit_of_an_index_or_of_the_rows_is_noticed(tmp_path):
    entries, _ = written(tmp_path, [6], NAMES, labelled=True)
    rows, index = tmp_path / "samples.tsv", tmp_path / "val-000000.idx"
    found = read_indexes(tmp_path, entries, extension="jpg", labelled=True)
    promised, noticed = file_entry(rows.read_bytes()), 0
    for path in (rows, index):
        text = path.read_bytes()
        for at in range(len(text)):
            path.write_bytes(text[:at] + bytes([text[at] ^ 1 << at % 8]) + text[at + 1 :])
            with pytest.raises(NotPlain):
                if path is rows:
                    read_row_columns(rows, promised, split="val", first=3, keys=found.keys)
                else:
                    read_indexes(tmp_path, entries, extension="jpg", labelled=True)
            noticed += 1
        path.write_bytes(text)

    assert noticed == rows.stat().st_size + index.stat().st_size


@given(names=lists(KEYS, max_size=12), start=integers(-15, 15), stop=integers(-15, 15))
def test_keys_are_a_sequence_of_words(names, start, stop):
    keys = Keys.of(names)

    assert list(keys) == names
    assert keys == names
    assert keys != [*names, "x"]
    assert list(keys[start:stop]) == names[start:stop]
    assert [keys[place] for place in range(-len(names), len(names))] == names * 2
    assert all(keys.index(name) == names.index(name) for name in names)
    with pytest.raises(IndexError):
        keys[len(names)]


def test_places_of_bytes_and_labels_are_as_wide_as_promised(tmp_path):
    entries, _ = written(tmp_path, [2, 1], NAMES, labelled=False)
    found, label, crc32 = at_once(tmp_path, entries, labelled=False)

    assert (found.offset.dtype, found.size.dtype, label.dtype) == (np.int64, np.int64, np.int64)
    assert crc32.dtype == np.uint32
    assert label.tolist() == [-1, -1, -1]
