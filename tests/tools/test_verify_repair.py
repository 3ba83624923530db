"""`alexshard verify --repair` makes what is wrong again, that and no more, to the same bytes."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import signal
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from alexshard.shards import Manifest, verify_shard_set
from alexshard.tools.cli_alexshard import main
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from tests.conftest import alexshard, run
from tests.shards.conftest import early_set


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    dest = tmp_path_factory.mktemp("repair") / "source"
    run(*alexshard("sample", dest, "--train", 24, "--val", 6, "--test", 6, "--classes", 3))
    return dest


@pytest.fixture(scope="module")
def sound(source) -> Path:
    """A set of three train shards, one val and one test shard."""
    dest = source.parent / "set"
    run(*alexshard("build", source, "--out", dest, "--size", 40, "--samples-per-shard", 8))
    return dest


@pytest.fixture
def copied(sound, tmp_path) -> Path:
    return shutil.copytree(sound, tmp_path / "set")


def repair(folder: Path, source: Path, *more: object) -> subprocess.CompletedProcess[str]:
    """The command, in this process: all that it does counts, and starting Python thirty times takes long."""
    words = [str(word) for word in ("verify", folder, "--repair", source, *more)]
    done = CliRunner().invoke(main, words, catch_exceptions=False)
    return subprocess.CompletedProcess(words, done.exit_code, done.stdout, done.stderr)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def identities(folder: Path) -> dict[str, tuple[int, int]]:
    return {path.name: (path.stat().st_ino, path.stat().st_mtime_ns) for path in folder.iterdir()}


def flip(path: Path, byte: int = 700) -> None:
    data = bytearray(path.read_bytes())
    data[byte] ^= 16
    path.write_bytes(data)


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def garble(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[3:9] = b"\0\1\2\3\4\5"
    path.write_bytes(data)


def pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


WITHOUT_SOURCE: list[dict[str, Callable[[Path], None]]] = [
    {"train-000001.idx": cut, "val-000000.idx": Path.unlink},
    {"SHA256SUMS": garble, "_info.json": Path.unlink, "classes.txt": cut},
    {"samples.tsv": flip, "mean_image.npy": flip},
    {"manifest.json": flip, "SHA256SUMS": Path.unlink},
    dict.fromkeys(("val-000000.idx", "SHA256SUMS", "_info.json"), pipe),
]
FROM_SOURCE: list[dict[str, Callable[[Path], None]]] = [
    {"train-000001.tar": flip},
    {"train-000002.tar": Path.unlink, "train-000002.idx": Path.unlink, "test-000000.tar": cut},
    {"mean_image.npy": Path.unlink},
    dict.fromkeys(("test-000000.tar", "train-000000.idx", "samples.tsv"), pipe),
    {"samples.tsv": garble, "quarantine.jsonl": lambda path: path.write_bytes(b"{}\n")},
    dict.fromkeys(
        ("train-000000.tar", "train-000000.idx", "val-000000.idx", "samples.tsv", "classes.txt"), garble
    ),
]


def damage(folder: Path, damages: dict[str, Callable[[Path], None]]) -> None:
    for name, spoil in damages.items():
        spoil(folder / name)


@pytest.mark.parametrize("damages", FROM_SOURCE + WITHOUT_SOURCE, ids=lambda damages: "+".join(damages))
def test_what_is_wrong_is_made_again_to_the_same_bytes_and_the_rest_is_not_touched(
    copied, sound, source, tmp_path, damages
):
    before = identities(copied)
    damage(copied, damages)
    done = repair(copied, tmp_path / "no source" if damages in WITHOUT_SOURCE else source)

    assert done.returncode == 0, done.stderr
    assert contents(copied) == contents(sound)
    assert [line for line in done.stdout.splitlines() if line.startswith("repaired ")] == [
        f"repaired {name}" for name in sorted(damages)
    ]
    after = identities(copied)
    assert {name for name in before if before[name] != after[name]} == set(damages)


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_any_flipped_bit_of_a_built_set_is_one_problem_with_its_file_and_byte(sound, data):
    path = data.draw(st.sampled_from(sorted(path for path in sound.iterdir() if path.stat().st_size)))
    whole = path.read_bytes()
    bit = data.draw(st.integers(0, 8 * len(whole) - 1))
    damaged = bytearray(whole)
    damaged[bit // 8] ^= 1 << bit % 8
    path.write_bytes(damaged)
    try:
        assert [(problem.file, problem.offset) for problem in verify_shard_set(sound)] == [(path.name, bit // 8)]
    finally:
        path.write_bytes(whole)


def test_what_a_killed_repair_has_left_beside_a_sound_set_goes(copied, sound, source):
    work = copied / ".build" / "repair"
    work.mkdir(parents=True)
    (work / "train-000000.npz").write_bytes(b"half of it")
    (work.parent / "lock").touch()
    done = repair(copied, source)

    assert done.returncode == 0, done.stderr
    assert contents(copied) == contents(sound)


def test_a_sound_set_is_left_alone(copied, tmp_path):
    before = identities(copied)
    done = repair(copied, tmp_path / "no source", "--json")

    assert done.returncode == 0, done.stderr
    assert {**json.loads(done.stdout), "path": "", "digest": ""} == {
        "schema": 1,
        "path": "",
        "digest": "",
        "samples": 36,
        "deep": False,
        "sound": True,
        "problems": [],
        "repaired": [],
        "found": [],
    }
    assert identities(copied) == before


def test_the_source_of_a_repair_may_be_an_address(copied, sound, source):
    flip(copied / "train-000001.tar")

    done = repair(copied, f"file://{source}")

    assert done.returncode == 0, done.stderr
    assert contents(copied) == contents(sound)


@pytest.mark.parametrize("options", [["--format", "raw", "--splits", "val,train"], ["--exact", "--seed", "7"]])
def test_sets_of_other_settings_are_repaired_by_these(source, tmp_path, options):
    made = tmp_path / "made"
    run(*alexshard("build", source, "--out", made, "--size", 40, *options))
    whole = contents(made)
    cut(made / "train-000000.tar")
    done = repair(made, source)

    assert done.returncode == 0, done.stderr
    assert contents(made) == whole


@pytest.mark.parametrize("lost", ["SHA256SUMS", "val-000000.idx", "mean_image.npy"])
def test_a_set_of_an_early_build_is_repaired_too(sound, source, tmp_path, lost):
    early = early_set(sound, tmp_path / "early")
    whole = contents(early)
    cut(early / lost)
    done = repair(early, source)

    assert done.returncode == 0, done.stderr
    assert contents(early) == whole


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> Path:
    """Two classes of four pictures, some of which are none."""
    folder = tmp_path_factory.mktemp("folders") / "source"
    for number in range(8):
        path = folder / "train" / "ab"[number % 2] / f"picture{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (50, 60), (30 * number, 200, 20)).save(path)
        if number in {1, 4, 6}:
            path.write_bytes(b"no picture")
    return folder


@pytest.mark.parametrize("lost", ["train-000003.tar", "quarantine.jsonl"])
def test_shards_that_were_refused_whole_do_not_shift_the_others(folders, tmp_path, lost):
    made = tmp_path / "made"
    command = alexshard("build", folders, "--out", made, "--size", 16, "--samples-per-shard", 1, "--max-bad", 3)
    run(*command)
    whole = contents(made)
    (made / lost).unlink()
    done = repair(made, folders)

    assert done.returncode == 0, done.stderr
    assert contents(made) == whole


def test_another_source_is_refused_with_the_difference_before_anything_is_touched(copied, tmp_path):
    other = tmp_path / "other"
    run(*alexshard("sample", other, "--train", 24, "--val", 7, "--test", 6, "--classes", 3))
    cut(copied / "train-000001.tar")
    flip(copied / "samples.tsv")
    before = identities(copied)
    done = repair(copied, other)

    assert done.returncode == 2
    assert "images of val: 6 -> 7" in done.stderr
    assert identities(copied) == before


def test_a_source_of_the_same_counts_but_other_images_is_refused_too(folders, tmp_path):
    made, other = tmp_path / "made", shutil.copytree(folders, tmp_path / "other")
    run(*alexshard("build", folders, "--out", made, "--size", 16, "--max-bad", 3))
    (other / "train" / "a" / "picture0.png").write_bytes(b"another size")
    cut(made / "train-000000.tar")
    before = identities(made)
    done = repair(made, other)

    assert done.returncode == 2
    assert "names, sizes, labels or places of the images" in done.stderr
    assert identities(made) == before


def test_other_classes_are_refused_by_the_first_that_differs(folders, tmp_path):
    made, other = tmp_path / "made", shutil.copytree(folders, tmp_path / "other")
    run(*alexshard("build", folders, "--out", made, "--size", 16, "--max-bad", 3))
    (other / "train" / "b").rename(other / "train" / "bees")
    cut(made / "train-000000.tar")
    done = repair(made, other)

    assert done.returncode == 2
    assert "the first to differ: b -> bees" in done.stderr


def test_another_codec_is_refused_by_its_name(copied, source):
    manifest = Manifest.load(copied)
    facts = {**manifest.build, "resampler": "another 1.0"}
    (copied / "manifest.json").write_text(replace(manifest, build=facts).sealed().to_json(), encoding="utf-8")
    cut(copied / "train-000001.tar")
    before = identities(copied)
    done = repair(copied, source)

    assert done.returncode == 2
    assert "resampler: another 1.0 -> " in done.stderr
    assert identities(copied) == before


def test_a_source_that_gives_other_bytes_replaces_nothing(copied, source, tmp_path):
    other = shutil.copytree(source, tmp_path / "other")
    archive = other / "ILSVRC2010_images_train.tar"
    spoiled = bytearray(archive.read_bytes())  # the same names and sizes; tables of JPEGs are other ones
    start = spoiled.find(b"\xff\xdb\x00\x43\x00")
    while start >= 0:
        spoiled[start + 5] = 255
        start = spoiled.find(b"\xff\xdb\x00\x43\x00", start + 5)
    archive.write_bytes(spoiled)
    for number in range(3):
        cut(copied / f"train-{number:06d}.tar")
    before = identities(copied)
    done = repair(copied, other)

    assert done.returncode == 1
    assert "has other bytes than were written" in done.stderr
    assert identities(copied) == before


def test_a_shard_that_the_manifest_does_not_know_is_told_and_stays(copied, source):
    (copied / "train-000003.tar").write_bytes(b"somebody's")
    flip(copied / "val-000000.tar")
    done = repair(copied, source)

    assert done.returncode == 1
    assert done.stdout.splitlines() == [
        "repaired val-000000.tar",
        "train-000003.tar: is not in the manifest, so no reader will find it",
    ]
    assert (copied / "train-000003.tar").read_bytes() == b"somebody's"


def test_a_manifest_with_more_than_one_wrong_bit_is_beyond_repair(copied, source):
    garble(copied / "manifest.json")
    before = identities(copied)
    done = repair(copied, source)

    assert done.returncode == 1
    assert f"alexshard build {source} --out ANOTHER-FOLDER" in done.stderr
    assert identities(copied) == before


def test_the_mean_image_of_a_set_without_train_is_not_made_up(sound, source, tmp_path):
    made = tmp_path / "made"
    options = ["--size", 40, "--splits", "val", "--statistics-from", sound]
    run(*alexshard("build", source, "--out", made, *options))
    whole = contents(made)
    cut(made / "mean_image.npy")
    flip(made / "val-000000.tar")
    done = repair(made, source)

    assert done.returncode == 1
    assert "mean_image.npy at byte" in done.stdout
    assert (made / "val-000000.tar").read_bytes() == whole["val-000000.tar"]


@pytest.mark.parametrize("moment", ["..", "*.npz", "*.json"])  # begun, at work, a shard is done
def test_a_repair_that_is_killed_has_changed_nothing_and_can_be_repeated(copied, sound, source, moment):
    for number in range(3):
        flip(copied / f"train-{number:06d}.tar")
    before = contents(copied)
    work = copied / ".build" / "repair"
    with subprocess.Popen(
        alexshard("verify", copied, "--repair", source), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as process:
        while process.poll() is None and not any(work.glob(moment)):
            os.sched_yield()
        process.send_signal(signal.SIGKILL)
    if process.returncode == 0:
        pytest.skip("the repair was faster than the look at it")

    assert process.returncode == -signal.SIGKILL
    left = {path.name: path.read_bytes() for path in copied.iterdir() if path.is_file()}
    assert left == before
    assert repair(copied, source).returncode == 0
    assert contents(copied) == contents(sound)


def test_while_a_build_or_repair_is_at_work_another_is_refused(copied, source):
    flip(copied / "val-000000.tar")
    (copied / ".build").mkdir()
    with (copied / ".build" / "lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        done = repair(copied, source)

    assert done.returncode == 2
    assert "is at work on" in done.stderr
    assert [problem.file for problem in verify_shard_set(copied)] == ["val-000000.tar"]
