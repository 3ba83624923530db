from __future__ import annotations

import hashlib
import re
import zlib
from pathlib import Path

import pytest
from alexshard.shards import Manifest, Sample, ShardName, ShardWriter, Split, appearing_whole

from .conftest import Tiny, make_tiny

NAME = ShardName(Split.TRAIN, 0)


def test_an_exception_leaves_nothing_that_looks_complete(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="disk on fire"), ShardWriter(tmp_path, NAME) as writer:
        writer.write(Sample("a", 0, b"x", "jpg"))
        raise RuntimeError("disk on fire")

    assert list(tmp_path.iterdir()) == []


def test_while_a_shard_is_written_its_name_is_not_there(tmp_path: Path) -> None:
    with ShardWriter(tmp_path, NAME) as writer:
        writer.write(Sample("a", 0, b"x", "jpg"))
        during = [path.name for path in tmp_path.iterdir()]

    assert [re.sub("-[A-Za-z0-9_]+-[0-9]+-[0-9a-f]{8}$", "", name) for name in during] == ["train-000000.tar.part"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["train-000000.idx", "train-000000.tar"]


def test_an_index_that_cannot_be_written_takes_its_shard_with_it(tmp_path: Path) -> None:
    (tmp_path / "train-000000.idx").mkdir()  # a rename onto a folder fails
    with pytest.raises(OSError, match=r"train-000000\.idx"), ShardWriter(tmp_path, NAME) as writer:
        writer.write(Sample("a", 0, b"x", "jpg"))

    assert [path.name for path in tmp_path.iterdir()] == ["train-000000.idx"]


def test_an_empty_shard_is_never_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="would be empty"), ShardWriter(tmp_path, NAME):
        pass

    assert list(tmp_path.iterdir()) == []


def test_a_key_comes_once_and_is_a_key(tmp_path: Path) -> None:
    with ShardWriter(tmp_path, NAME) as writer:
        writer.write(Sample("a", 0, b"x", "jpg"))
        with pytest.raises(ValueError, match=r"in train-000000\.tar already"):
            writer.write(Sample("a", 0, b"x", "jpg"))
        with pytest.raises(ValueError, match="no key"):
            writer.write(Sample("a.b", 0, b"x", "jpg"))

    assert writer.entry.samples == 1


def test_a_file_keeps_its_old_content_when_writing_it_anew_fails(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")
    with pytest.raises(RuntimeError, match="disk on fire"), appearing_whole(path) as file:
        file.write(b"new")
        raise RuntimeError("disk on fire")

    assert (path.read_bytes(), [p.name for p in tmp_path.iterdir()]) == (b"old", ["file"])


def test_equal_content_is_equal_bytes(tiny: Tiny, tmp_path: Path) -> None:
    again = make_tiny(tmp_path / "again")

    assert {p.name: p.read_bytes() for p in tiny.path.iterdir()} == {
        p.name: p.read_bytes() for p in again.path.iterdir()
    }


def test_the_manifest_names_size_sha256_and_crc32_of_every_other_file(tiny: Tiny) -> None:
    files = Manifest.load(tiny.path).files

    others = {path.name for path in tiny.path.iterdir() if path.suffix not in {".tar", ".idx"}}
    assert set(files) == others - {"manifest.json", "SHA256SUMS"}
    for name, entry in files.items():
        data = (tiny.path / name).read_bytes()
        assert (entry.bytes, entry.sha256, entry.crc32) == (
            len(data),
            hashlib.sha256(data).hexdigest(),
            f"{zlib.crc32(data):08x}",
        )


def test_the_manifest_carries_the_crc32_of_its_own_text(tiny: Tiny) -> None:
    manifest = Manifest.load(tiny.path)
    text = (tiny.path / "manifest.json").read_text(encoding="utf-8")
    blank = text.replace(f'\n "crc32": "{manifest.crc32}"', f'\n "crc32": "{"0" * 8}"').replace(
        manifest.digest, "0" * 64
    )

    assert manifest.crc32 == f"{zlib.crc32(blank.encode()):08x}"
