"""Bad input, through the loader: one error with its place and remedy, before training where it can be known.

Each case harms a copy of a small set. None may hang: an alarm ends a test that waits.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from alexshard.pipeline import Loader, UndecodableSample, kernels
from alexshard.shards import (
    AlexshardError,
    CorruptShardSet,
    Sample,
    SampleRow,
    ShardName,
    ShardSet,
    ShardWriter,
    Split,
    finish_shard_set,
    ppm_bytes,
)
from simplejpeg import encode_jpeg

from tests.conftest import alexshard

from .conftest import SIDE

SECONDS = 60


@contextmanager
def alarm():
    """Ends what waits for something that does not come."""

    def ring(*_):
        pytest.fail(f"it still waits after {SECONDS} s")  # no Exception, which might be taken for what is tested

    before = signal.signal(signal.SIGALRM, ring)
    signal.alarm(SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


@pytest.fixture(params=["jpeg", "raw"])
def pictures(request):
    return request.getfixturevalue(f"{request.param}_set")


@pytest.fixture
def folder(pictures, tmp_path):
    return shutil.copytree(pictures.path, tmp_path / "two words")


def cut(path):
    os.truncate(path, path.stat().st_size - 600)


def lengthen(path):
    with path.open("ab") as file:
        file.write(b"\0")


def to_pipe(path):
    path.unlink()
    os.mkfifo(path)


def to_folder(path):
    path.unlink()
    path.mkdir()


def replaced(was, is_now):
    def harm(path):
        text = path.read_bytes()
        assert was in text
        path.write_bytes(text.replace(was, is_now, 1))

    return harm


def swapped(path):
    """Two lines in each other's place."""
    lines = path.read_bytes().split(b"\n")
    lines[1], lines[2] = lines[2], lines[1]
    path.write_bytes(b"\n".join(lines))


TAR, IDX, TSV, MEAN, JSON = (
    "train-000001.tar",
    "train-000001.idx",
    "samples.tsv",
    "mean_image.npy",
    "manifest.json",
)
KNOWN_AT_THE_START = {
    "shard missing": (TAR, Path.unlink, "the shard {} cannot be opened: No such file or directory"),
    "shard cut": (TAR, cut, "the shard {} has "),
    "shard longer": (TAR, lengthen, "the shard {} has "),
    "shard a pipe": (TAR, to_pipe, "the shard {} cannot be opened: it is no regular file"),
    "shard a folder": (TAR, to_folder, "the shard {} cannot be opened: it is no regular file"),
    "index missing": (IDX, Path.unlink, "the index {} cannot be read: No such file or directory"),
    "index cut": (IDX, cut, "the index {} says 33 samples, holds "),
    "index empty": (
        IDX,
        lambda path: path.write_bytes(b""),
        "the index {} does not begin with 'v1.2' and a count",
    ),
    "index a pipe": (IDX, to_pipe, "the index {} cannot be read: it is no regular file"),
    "index a folder": (IDX, to_folder, "the index {} cannot be read: it is no regular file"),
    "index of another split": (
        IDX,
        lambda path: shutil.copy(path.with_name("val-000000.idx"), path),
        "the index {} has 21 samples, the manifest says 33",
    ),
    "index pointing elsewhere": (
        IDX,
        replaced(b" 512 ", b" 513 "),
        "the index {} is not the one that was packed: its SHA-256 is ",
    ),
    "index of other keys": (
        IDX,
        replaced(b"train_040", b"train_999"),
        "the index {} is not the one that was packed",
    ),
    "rows missing": (TSV, Path.unlink, "{} cannot be read: No such file or directory"),
    "rows cut": (TSV, cut, "{} does not begin with its header or does not end with a newline"),
    "rows cut at a line": (
        TSV,
        lambda path: path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:70])),
        "{} is not the one that was packed: its SHA-256 is ",
    ),
    "rows a pipe": (TSV, to_pipe, "{} cannot be read: it is no regular file"),
    "rows a folder": (TSV, to_folder, "{} cannot be read: it is no regular file"),
    "another label": (
        TSV,
        replaced(b"train_003\t3\t", b"train_003\t4\t"),
        "{} is not the one that was packed: its SHA-256 is ",
    ),
    "no label at all": (TSV, replaced(b"train_003\t3\t", b"train_003\tx\t"), "{} line 5 is no sample: label 'x'"),
    "a label of no class": (TSV, replaced(b"train_003\t3\t", b"train_003\t7\t"), "{} has a label outside 0..6"),
    "another order of rows": (TSV, swapped, "{} is not the one that was packed: its SHA-256 is "),
    "a row of another split": (
        TSV,
        replaced(b"val_073", b"val_999"),
        "{} is not the one that was packed: its SHA-256 is ",
    ),
    "mean image missing": (MEAN, Path.unlink, "{} cannot be read: No such file or directory"),
    "mean image cut": (MEAN, cut, "{} is not the one that was packed: its SHA-256 is "),
    "mean image a pipe": (MEAN, to_pipe, "{} cannot be read: it is no regular file"),
    "mean image altered": (
        MEAN,
        lambda path: path.write_bytes(path.read_bytes()[:-1] + b"\0"),
        "{} is not the one that was packed: its SHA-256 is ",
    ),
    "manifest from the future": (
        JSON,
        replaced(b'"version": 1', b'"version": 2'),
        "is of format version 2, this alexshard reads version 1",
    ),
    "manifest altered": (
        JSON,
        replaced(b'"samples": 40', b'"samples": 41'),
        "the manifest was altered after it was written",
    ),
    "manifest cut": (JSON, cut, "the manifest is no JSON"),
    "manifest missing": (JSON, Path.unlink, "holds the files of a shard set without its manifest.json"),
    "manifest a pipe": (JSON, to_pipe, "holds the files of a shard set without its manifest.json"),
}
WITHOUT_REPAIR = {"manifest from the future", "manifest missing", "manifest a pipe"}


@pytest.mark.parametrize("case", KNOWN_AT_THE_START)
def test_what_is_wrong_is_told_before_training_starts(folder, case):
    name, harm, told = KNOWN_AT_THE_START[case]
    harm(folder / name)
    with alarm(), pytest.raises(AlexshardError) as error:
        Loader(folder, batch_size=10)

    assert told.format(name) in error.value.what
    assert error.value.remedy
    if case not in WITHOUT_REPAIR:
        assert f"alexshard verify '{folder}' --repair SOURCE" in error.value.remedy


def test_a_manifest_of_another_set_is_told_by_the_first_file_that_is_not_its(jpeg_set, raw_set, tmp_path):
    folder = shutil.copytree(jpeg_set.path, tmp_path / "set")
    shutil.copy(raw_set.path / JSON, folder / JSON)

    with alarm(), pytest.raises(CorruptShardSet, match=r"the shard train-000000\.tar has .* bytes, the manifest"):
        Loader(folder, batch_size=10)


@contextmanager
def nobody():
    """Work as a user that owns nothing; a test that is nobody's already goes on as it is."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


@pytest.mark.parametrize("name", [TAR, IDX, TSV, MEAN, JSON])
def test_a_file_that_may_not_be_read_is_told_before_training_starts(jpeg_set, name):
    with tempfile.TemporaryDirectory() as made:
        folder = shutil.copytree(jpeg_set.path, Path(made) / "set")
        for path in (Path(made), folder, *folder.iterdir()):
            path.chmod(0o755)
        (folder / name).chmod(0)
        with alarm(), nobody(), pytest.raises(AlexshardError, match=rf"{name}|the manifest") as error:
            Loader(folder, batch_size=10)

    assert "Permission denied" in error.value.what
    assert error.value.remedy


def first_bytes_of(folder, sample, by):
    """Write over the beginning of a train image where it lies."""
    index = ShardSet.open(folder).index("train")
    with (folder / index.shards[index.shard[sample]].name).open("r+b") as file:
        file.seek(int(index.offset[sample]))
        file.write(by)
    return index


MAKERS = [("threads", "cores"), ("dali", "cores"), ("dali", "card"), ("dali", "split"), ("reference", "cores")]


def making(backend, decoder):
    """Arguments of a loader whose batches are made so; skips where this machine has not what it takes."""
    if backend == "dali":
        pytest.importorskip("nvidia.dali", reason="DALI is not installed")
    if backend == "threads" and not kernels.AVAILABLE:
        pytest.skip("the kernels are not compiled")
    return {"backend": backend, "decoder": decoder}


@pytest.mark.filterwarnings("ignore:backend='reference'")
@pytest.mark.parametrize(("backend", "decoder"), MAKERS)
@pytest.mark.parametrize("place", [0, 40], ids=["in the first shard", "in the last"])
def test_a_shard_that_was_altered_after_the_build_is_told_when_the_image_is_first_read(
    folder, place, backend, decoder
):
    index = first_bytes_of(folder, place, b"other")
    with (
        alarm(),
        Loader(folder, batch_size=73, order="stored", **making(backend, decoder)) as loader,
        pytest.raises(
            UndecodableSample, match=r"its bytes have CRC-32 \w{8}, those that were packed had"
        ) as error,
    ):
        next(iter(loader))

    assert f"sample {index.keys[place]} " in error.value.what
    shard = index.shards[index.shard[place]].name
    assert error.value.where == f"{folder}/{shard}, at byte {index.offset[place]:,} ({index.size[place]:,} bytes)"
    assert f"alexshard verify '{folder}' --repair SOURCE" in error.value.remedy


@pytest.mark.filterwarnings("ignore:backend='reference'")
@pytest.mark.parametrize(("backend", "decoder"), MAKERS)
@pytest.mark.parametrize(
    ("extension", "image", "told"),
    [
        ("jpg", b"no JPEG at all", ""),
        ("jpg", encode_jpeg(np.zeros((SIDE, SIDE - 1, 3), np.uint8)), f"it has {SIDE - 1}x{SIDE} pixels"),
        ("ppm", b"no PPM at all", "no PPM file as this project writes it"),
        ("ppm", ppm_bytes(np.zeros((SIDE, SIDE - 1, 3), np.uint8)), f"it has {SIDE - 1}x{SIDE} pixels"),
    ],
)
def test_a_sample_that_was_packed_so_and_does_not_decode_is_told_with_its_place(
    jpeg_set, raw_set, tmp_path, extension, image, told, backend, decoder
):
    pictures = raw_set if extension == "ppm" else jpeg_set
    manifest = ShardSet.open(pictures.path).manifest
    with ShardWriter(tmp_path, ShardName(Split.TRAIN, 0)) as writer:
        crc32 = writer.write(Sample("strange", 3, image, extension))
    split = manifest.splits["train"].__class__(1, True, 0, 0, 1, (writer.entry,))
    finish_shard_set(
        tmp_path,
        image=manifest.image,
        splits={"train": split},
        classes=manifest.classes,
        statistics=manifest.statistics,
        mean_image=pictures.mean_image,
        build={},
        rows=[SampleRow("strange", 3, "train", "train-000000.tar", "x", "", crc32)],
        quarantine=[],
    )
    with (
        alarm(),
        Loader(tmp_path, batch_size=1, **making(backend, decoder)) as loader,
        pytest.raises(UndecodableSample) as error,
    ):
        next(iter(loader))

    assert f"sample strange is no {SIDE}x{SIDE} RGB image: " in error.value.what
    assert told in error.value.what
    assert error.value.where == f"{tmp_path}/train-000000.tar, at byte 512 ({len(image):,} bytes)"


def test_a_folder_that_goes_away_while_it_is_read_is_told_by_its_shard(folder):
    with alarm(), Loader(folder, batch_size=10) as loader:
        shutil.rmtree(folder)
        with pytest.raises(CorruptShardSet, match=r"the shard train-00000\d\.tar cannot be opened: No such file"):
            next(iter(loader))


def test_shards_replaced_by_the_same_while_they_are_read_change_nothing(folder, pictures):
    with alarm(), Loader(folder, batch_size=10, order="stored", augment=None, output="uint8", crop=SIDE) as loader:
        keys = []
        for batch in loader:
            keys += batch.keys
            for name in ("train-000000.tar", TAR):
                shutil.copy(pictures.path / name, folder / "new")
                (folder / "new").replace(folder / name)

    assert keys == pictures.keys["train"][:70]


WHILE_READING = """
import os, sys
from pathlib import Path
from alexshard.pipeline import Loader
from alexshard.shards import AlexshardError

folder, harm = Path(sys.argv[1]), sys.argv[2]
with Loader(folder, batch_size=2, prefetch=1) as loader:
    for epoch in range(3):  # of the first, all may have been read ahead
        try:
            for number, batch in enumerate(loader):
                if (epoch, number) == (0, 0):
                    for path in folder.glob("train-*.tar"):
                        if harm == "cut":
                            os.truncate(path, 3000)
                        else:
                            with path.open("r+b") as file:
                                file.write(bytes(path.stat().st_size))
        except AlexshardError as error:
            print(error)
            sys.exit(error.exit_code)
"""


@pytest.mark.parametrize(("harm", "told"), [("cut", " ends at byte 3,000, while "), ("filled", " have CRC-32 ")])
def test_a_shard_changed_in_place_while_it_is_read_ends_the_run_by_an_error_not_a_signal(folder, harm, told):
    done = subprocess.run(
        [sys.executable, "-c", WHILE_READING, folder, harm],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )

    assert (done.returncode, done.stderr) == (1, "")
    assert told in done.stdout
    assert re.search(r"sample train_0\d\d ", done.stdout)
    assert re.search(rf"where: {folder}/train-00000\d\.tar, at byte \d", done.stdout)
    assert f"alexshard verify '{folder}' --repair SOURCE" in done.stdout


@pytest.mark.parametrize("name", [TSV, "quarantine.jsonl"])
def test_info_does_not_wait_for_a_pipe(jpeg_set, tmp_path, name):
    folder = shutil.copytree(jpeg_set.path, tmp_path / "set")
    to_pipe(folder / name)
    done = subprocess.run(
        alexshard("info", folder, "--html", tmp_path / "page.html"),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )

    assert done.returncode == 1
    assert f"error: {name} cannot be read: " in done.stderr
    assert "it is no regular file" in done.stderr
