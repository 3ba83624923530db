"""`alexshard verify` names file, offset and key of what is wrong, and exits 1."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from alexshard.shards import ShardSet, verify_shard_set
from alexshard.tools.deep_verify import deep_verify
from alexshard.tools.packing import default_workers

from tests.conftest import alexshard

# webdataset 1.0.2 leaves the files that it reads to the garbage collector.
pytestmark = [
    pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning"),
    pytest.mark.filterwarnings("ignore:Exception ignored in. <_io.FileIO:pytest.PytestUnraisableExceptionWarning"),
]


@pytest.fixture
def copied(sample_set, tmp_path) -> Path:
    dest = tmp_path / "set"
    shutil.copytree(sample_set, dest)
    return dest


def verify(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(alexshard("verify", *arguments), capture_output=True, text=True, check=False)


def flip(path: Path, offset: int) -> None:
    data = bytearray(path.read_bytes())
    data[offset] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("depth", [[], ["--deep"]])
def test_a_sound_set_is_called_sound_and_the_exit_code_is_0(sample_set, depth):
    done = verify(sample_set, *depth)

    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"{sample_set}: sound; 240 samples")
    assert len(done.stdout.splitlines()) == 1
    megabytes = -(-sum(path.stat().st_size for path in sample_set.glob("*.tar")) // 1_000_000)
    assert re.match(rf"verify {megabytes}/{megabytes} MB, .*\.tar\n", done.stderr)


def test_where_the_system_does_not_tell_which_cores_are_ours_all_are_used(sample_set, monkeypatch):
    monkeypatch.delattr(os, "sched_getaffinity")  # as on macOS

    assert verify_shard_set(sample_set) == []
    assert deep_verify(ShardSet.open(sample_set)) == []
    assert default_workers() == os.cpu_count()


def test_a_raw_set_is_read_deeply_too(raw_sample_set):
    done = verify(raw_sample_set, "--deep", "--json")

    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {
        "schema": 1,
        "path": str(raw_sample_set),
        "digest": ShardSet.open(raw_sample_set).digest,
        "samples": 240,
        "deep": True,
        "sound": True,
        "problems": [],
    }


def test_a_flipped_bit_is_one_line_with_file_byte_and_key_and_exit_code_1(copied):
    index = ShardSet.open(copied).index("val")
    byte = int(index.offset[7]) + 900
    was = (copied / "val-000000.tar").read_bytes()[byte]
    flip(copied / "val-000000.tar", byte)
    done = verify(copied)

    assert done.returncode == 1
    assert done.stdout.splitlines() == [
        f"val-000000.tar at byte {byte:,}, sample {index.keys[7]}: in its image, "
        f"bit 0 is flipped: 0x{was ^ 1:02x} where 0x{was:02x} was written"
    ]
    assert f"alexshard verify {copied} --repair SOURCE" in done.stderr


@pytest.mark.parametrize(
    ("name", "byte"),
    [("train-000000.idx", 30), ("samples.tsv", 5000), ("mean_image.npy", 99), ("manifest.json", 7)],
)
def test_so_it_is_in_every_other_file(copied, name, byte):
    flip(copied / name, byte)
    done = verify(copied, "--json")

    assert done.returncode == 1
    told = json.loads(done.stdout)["problems"]
    assert [(problem["file"], problem["offset"]) for problem in told] == [(name, byte)]


def test_a_flipped_bit_of_a_header_is_told_with_file_offset_and_key(copied):
    index = ShardSet.open(copied).index("val")
    flip(copied / "val-000000.tar", int(index.offset[7]) - 512)  # the first letter of the name
    done = verify(copied)

    assert done.returncode == 1
    assert done.stdout.startswith(f"val-000000.tar at byte {index.offset[7] - 512:,}, sample {index.keys[7]}: ")


def test_a_missing_shard_is_found(copied):
    (copied / "test-000000.tar").unlink()
    done = verify(copied)

    assert done.returncode == 1
    assert "test-000000.tar" in done.stdout
    assert "Traceback" not in done.stderr


def test_a_folder_without_a_manifest_is_a_wrong_call(tmp_path):
    assert verify(tmp_path).returncode == 2


def test_the_deep_reading_finds_an_image_that_does_not_decode(copied):
    # Sound on the surface is what a broken encoder would give: so the shard alone is damaged, after it was opened.
    shard_set = ShardSet.open(copied)
    index = shard_set.index("val")
    path, at = copied / "val-000000.tar", int(index.offset[3])
    data = bytearray(path.read_bytes())
    data[at : at + 200] = bytes(200)
    path.write_bytes(data)
    problems = deep_verify(shard_set)

    assert [(p.file, p.offset, p.key) for p in problems] == [("val-000000.tar", at, index.keys[3])]
    assert "webdataset cannot read this" in problems[0].what


def test_the_deep_reading_finds_an_image_that_decodes_but_is_another(copied):
    shard_set = ShardSet.open(copied)
    index = shard_set.index("val")
    path, at = copied / "val-000000.tar", int(index.offset[3])
    data = bytearray(path.read_bytes())
    table = data.index(b"\xff\xdb\x00\x43", at) + 5
    assert table < at + int(index.size[3])
    data[table] = 200  # of the quantisation: coarser, and still a JPEG
    path.write_bytes(data)

    assert [(p.key, p.what) for p in deep_verify(shard_set)] == [
        (index.keys[3], "its image has another CRC-32 than samples.tsv says")
    ]


def test_the_deep_reading_finds_a_wrong_label_and_a_wrong_size(copied):
    shard_set = ShardSet.open(copied)
    index = shard_set.index("val")
    label_at = int(index.offset[5] + -(-index.size[5] // 512) * 512 + 512)
    path = copied / "val-000000.tar"
    data = bytearray(path.read_bytes())
    assert data[label_at : label_at + 1] == str(index.label[5]).encode()
    data[label_at] = ord("0") + (int(index.label[5]) + 1) % 10
    path.write_bytes(data)
    smaller = dataclasses.replace(
        shard_set.manifest, image=dataclasses.replace(shard_set.manifest.image, side=128)
    )

    assert [p.key for p in deep_verify(shard_set)] == [index.keys[5]]
    assert "reads label" in deep_verify(shard_set)[0].what
    sizes = deep_verify(dataclasses.replace(shard_set, manifest=smaller))
    assert sum("not 128×128" in p.what for p in sizes) == 240


def test_the_deep_reading_finds_a_sample_that_webdataset_leaves_out(copied):
    shard_set = ShardSet.open(copied)
    index = shard_set.index("val")
    path = copied / "val-000000.tar"
    cut = int(index.offset[-1]) - 512  # where the last sample's header begins
    data = path.read_bytes()
    path.write_bytes(data[:cut] + bytes(len(data) - cut))
    problems = deep_verify(shard_set)

    assert [(p.offset, p.key, p.what) for p in problems] == [
        (int(index.offset[-1]), index.keys[-1], "webdataset does not give this sample")
    ]


def test_deep_reading_is_left_out_where_the_surface_is_broken_already(copied):
    flip(copied / "val-000000.idx", 30)

    assert json.loads(verify(copied, "--deep", "--json").stdout)["deep"] is False
