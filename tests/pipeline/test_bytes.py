"""Stored bytes: what is handed out is what was packed, or an error that names the place."""

from __future__ import annotations

import os
import re
import shutil

import numpy as np
import pytest
from alexshard.pipeline import UndecodableSample
from alexshard.pipeline.bytes import StoredImages
from alexshard.shards import CorruptShardSet, LocalShelf, ShardFiles, ShardSet


def stored_images(folder, split="train", shelf=None):
    shard_set = ShardSet.open(folder)
    return StoredImages(shard_set.index(split), shelf or shard_set.shelf, shard_set.manifest.image.side)


def overwrite(stored, folder, sample, *, at, by):
    """Other bytes in the middle of a stored file."""
    with (folder / stored.index.shards[stored.index.shard[sample]].name).open("r+b") as file:
        file.seek(int(stored.index.offset[sample]) + at)
        file.write(by)


@pytest.mark.parametrize("encoding", ["raw", "jpeg"])
def test_every_stored_file_is_read_into_the_buffer_that_is_given(request, encoding):
    pictures = request.getfixturevalue(f"{encoding}_set")
    stored = stored_images(pictures.path)
    into = np.empty(stored.largest, np.uint8)
    with ShardFiles(stored.index, stored.shelf) as files:
        for sample in range(len(stored.index)):
            read = stored.read(sample, into)

            assert read.tobytes() == files.bytes_of(sample)
            assert np.shares_memory(read, into)
            if encoding == "raw":
                assert np.array_equal(stored.pixels_of(sample, read), pictures.pixels["train"][sample])
    assert max(stored.index.size) == stored.largest
    stored.close()


def test_altered_bytes_are_told_with_shard_key_offset_and_remedy(jpeg_set, tmp_path):
    folder = shutil.copytree(jpeg_set.path, tmp_path / "set")
    stored = stored_images(folder)
    overwrite(stored, folder, 41, at=100, by=b"\0\0\0\0")
    with pytest.raises(UndecodableSample) as told:
        stored.read(41, np.empty(stored.largest, np.uint8))
    index = stored.index

    assert re.match(
        rf"sample {index.keys[41]} is no 74x74 RGB image: its bytes have CRC-32 \w{{8}}, those that were packed "
        rf"had {index.crc32[41]:08x}$",
        told.value.what,
    )
    assert told.value.where == (
        f"{folder}/train-000001.tar, at byte {index.offset[41]:,} ({index.size[41]:,} bytes)"
    )
    assert f"alexshard verify {folder} --repair SOURCE" in told.value.remedy


def test_a_shard_that_was_put_right_while_it_was_open_is_opened_once_more(jpeg_set, tmp_path):
    folder = shutil.copytree(jpeg_set.path, tmp_path / "set")
    stored = stored_images(folder)
    into = np.empty(stored.largest, np.uint8)
    expected = stored.read(0, into).copy()
    overwrite(stored, folder, 0, at=100, by=b"\0\0\0\0")
    shutil.copy(jpeg_set.path / "train-000000.tar", folder / "mended")
    (folder / "mended").replace(folder / "train-000000.tar")

    assert np.array_equal(stored.read(0, into), expected)


def test_a_shard_that_was_replaced_by_another_goes_on_being_read_as_it_was_opened(jpeg_set, tmp_path):
    folder = shutil.copytree(jpeg_set.path, tmp_path / "set")
    stored = stored_images(folder)
    into = np.empty(stored.largest, np.uint8)
    expected = stored.read(3, into).copy()
    (folder / "other").write_bytes(bytes((folder / "train-000000.tar").stat().st_size))
    (folder / "other").replace(folder / "train-000000.tar")

    assert np.array_equal(stored.read(3, into), expected)
    stored.will_need([1])  # lets go of it
    with pytest.raises(UndecodableSample, match=f"sample {stored.index.keys[3]} .* CRC-32 "):
        stored.read(3, into)


def test_a_shard_that_ends_early_is_told_with_the_place_where_it_ends(raw_set, tmp_path):
    folder = shutil.copytree(raw_set.path, tmp_path / "set")
    stored = stored_images(folder)
    into = np.empty(stored.largest, np.uint8)
    stored.read(0, into)
    end = int(stored.index.offset[7]) + 50
    os.truncate(folder / "train-000000.tar", end)
    assert np.array_equal(stored.pixels_of(6, stored.read(6, into)), raw_set.pixels["train"][6])
    with pytest.raises(CorruptShardSet) as told:
        stored.read(7, into)

    assert told.value.what == (
        f"the shard train-000000.tar ends at byte {end:,}, while sample {stored.index.keys[7]} was read"
    )
    assert f"{folder}/train-000000.tar, at byte {stored.index.offset[7]:,} " in told.value.where
    assert f"alexshard verify {folder} --repair SOURCE" in told.value.remedy


class _Refuses(LocalShelf):
    """Gives descriptors that cannot be read, as a failing disk does."""

    def open(self, shard):
        os.close(super().open(shard))
        return os.open(os.devnull, os.O_WRONLY)

    def again(self, _shard):
        return False


def test_an_error_of_the_disk_is_told_with_shard_key_and_offset(jpeg_set):
    stored = stored_images(jpeg_set.path, "val", _Refuses(jpeg_set.path))
    with pytest.raises(CorruptShardSet) as told:
        stored.read(5, np.empty(stored.largest, np.uint8))

    assert told.value.what == (
        "the shard val-000000.tar cannot be read: Bad file descriptor, "
        f"while sample {stored.index.keys[5]} was read"
    )
    assert f"val-000000.tar, at byte {stored.index.offset[5]:,} " in told.value.where
    with ShardFiles(stored.index, stored.shelf) as files, pytest.raises(CorruptShardSet, match="Bad file descr"):
        files.bytes_of(5)


def test_shards_that_are_wanted_next_are_told_to_the_shelf_in_their_order(jpeg_set):
    told = []

    class Listens(LocalShelf):
        def ahead(self, shards, **_):
            told.append([shard.name for shard in shards])

    stored_images(jpeg_set.path, "train", Listens(jpeg_set.path)).will_need([1, 0])

    assert told == [["train-000001.tar", "train-000000.tar"]]


def test_an_empty_split_has_no_largest_file(jpeg_set):
    index = ShardSet.open(jpeg_set.path).index("val")
    nothing = type(index)(
        index.split,
        (),
        *(getattr(index, name)[:0] for name in ("shard", "offset", "size", "label", "crc32", "keys")),
    )

    assert StoredImages(nothing, LocalShelf(jpeg_set.path), 74).largest == 0
