"""An unfinished build: what is kept of it, who may continue it, and that it ends in the same bytes."""

from __future__ import annotations

import errno
import fcntl
import io
import json
import multiprocessing
import os
import platform
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import fsspec
import pytest
from alexshard.shards import AlexshardError, ImageFormat, Manifest, WrongCall, verify_shard_set
from alexshard.tools.packing import BuildSettings, MaxBad, TooManyBad, build, plan_build
from alexshard.tools.packing.identity import Identity
from alexshard.tools.packing.lock import locked
from alexshard.tools.packing.output import WORK_NAME, Output
from alexshard.tools.packing.sources import BadSource, source_at
from alexshard.tools.terminal import Progress
from PIL import Image

from tests.conftest import alexshard
from tests.tools.drawn import SMALL, encoded, files_of, folders, ilsvrc, named_images, pixels

build_module = sys.modules[build.__module__]
SHARDS = 8  # of `ilsvrc` with two samples each: six of train, two of val


class Stop(BaseException):
    """What a signal raises in the main thread."""


def two_each(source: Path, out: Path, **settings: object):
    return plan_build(
        BuildSettings(
            source=source,
            out=out,
            **{"image": SMALL, "max_bad": MaxBad.parse("0"), "samples_per_shard": 2, **settings},
        )
    )


def packed(source: Path, out: Path, **settings: object):
    return build(two_each(source, out, **settings), workers=1, on_progress=lambda *_: None)


def stopped(source: Path, out: Path, *, after: int = 3, **settings: object) -> None:
    """A build that is stopped when `after` shards are finished, or one or two more."""
    work = out / WORK_NAME

    def stop(images: int, bad: int) -> None:
        if len(list(work.glob("*-*.json"))) >= after:
            raise Stop

    with pytest.raises(Stop):
        build(two_each(source, out, **settings), workers=1, on_progress=stop)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a source, a whole set of it, and one that was stopped half-way."""
    made = tmp_path_factory.mktemp("made")
    ilsvrc(made / "source")
    packed(made / "source", made / "whole")
    stopped(made / "source", made / "half")
    return made


@pytest.fixture
def source(made: Path, tmp_path: Path) -> Path:
    return shutil.copytree(made / "source", tmp_path / "source")


@pytest.fixture
def out(made: Path, tmp_path: Path) -> Path:
    """The output of a build that was stopped half-way."""
    return shutil.copytree(made / "half", tmp_path / "set")


@pytest.fixture
def whole(made: Path) -> dict[str, bytes]:
    """The files of an undisturbed build."""
    return files_of(made / "whole")


# --- what is kept


def test_what_was_finished_is_not_packed_again(source, out, whole, tmp_path):
    work = out / WORK_NAME
    kept = {path.stem: (work / f"{path.stem}.tar").stat().st_ino for path in work.glob("*-*.json")}

    report = packed(source, out)

    assert 3 <= len(kept) < SHARDS
    assert (report.shards_kept, report.images_kept) == (len(kept), 2 * len(kept))
    assert {name: (out / f"{name}.tar").stat().st_ino for name in kept} == kept
    assert files_of(out) == whole


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("harm", [cut, flip, Path.unlink])
@pytest.mark.parametrize("ending", ["tar", "idx", "npz", "json"])
def test_a_finished_shard_that_was_harmed_is_packed_again(source, out, whole, tmp_path, ending, harm):
    finished = len(list((out / WORK_NAME).glob("*-*.json")))
    harm(out / WORK_NAME / f"train-000001.{ending}")

    report = packed(source, out)

    assert report.shards_kept == finished - 1
    without_record = ending == "json" and harm is Path.unlink  # then it is not finished at all
    assert len(report.remarks) == (0 if without_record else 1)
    assert without_record or "first train-000001.tar: " in report.remarks[0]
    assert files_of(out) == whole


def test_beyond_max_bad_what_is_finished_is_kept_for_a_higher_one(tmp_path):
    train = named_images()
    train["n00000001"][:2] = [(f"n00000001_{i}.JPEG", b"text") for i in range(2)]
    source, out = ilsvrc(tmp_path / "source", train), tmp_path / "set"
    with pytest.raises(TooManyBad):
        packed(source, out, max_bad=MaxBad.parse("1"))
    finished = len(list((out / WORK_NAME).glob("*-*.json")))

    report = packed(source, out, max_bad=MaxBad.parse("2"))

    assert report.shards_kept == finished
    assert len(report.refusals) == 2
    packed(source, tmp_path / "undisturbed", max_bad=MaxBad.parse("2"))
    assert files_of(out) == files_of(tmp_path / "undisturbed")


def test_refusals_of_an_earlier_run_count(tmp_path):
    train = named_images()
    train["n00000001"] = [(name, b"text") for name, _ in train["n00000001"][:3]] + train["n00000001"][3:]
    source, out = ilsvrc(tmp_path / "source", train), tmp_path / "set"
    stopped(source, out, after=SHARDS - 1, max_bad=MaxBad.parse("3"))

    with pytest.raises(TooManyBad, match="3 bad images so far"):
        packed(source, out, max_bad=MaxBad.parse("2"))


# --- whose it is


@pytest.mark.parametrize(
    ("changed", "difference"),
    [
        ({"seed": 1}, "seed: 0 -> 1"),
        ({"image": ImageFormat(32, "jpeg", 80, "4:2:0")}, "image.quality: 90 -> 80"),
        ({"image": ImageFormat(48, "jpeg", 90, "4:2:0")}, "image.side: 32 -> 48"),
        ({"image": ImageFormat(32, "raw")}, "image.encoding: jpeg -> raw"),
        ({"samples_per_shard": 3}, "samples_per_shard.train: 2 -> 3"),
        ({"splits": ("train",)}, "splits: train, val -> train"),
        ({"exact": True}, "decoding: "),
    ],
)
def test_another_setting_is_refused_by_name_and_restart_begins_again(source, out, tmp_path, changed, difference):
    before = {name: data for name, data in files_of(out).items() if not name.endswith("lock")}

    with pytest.raises(WrongCall) as caught:
        packed(source, out, **changed)

    assert difference in caught.value.what
    assert "--restart" in caught.value.remedy
    assert {name: data for name, data in files_of(out).items() if not name.endswith("lock")} == before
    report = build(two_each(source, out, **changed), workers=1, on_progress=lambda *_: None, restart=True)
    assert report.shards_kept == 0
    assert verify_shard_set(out) == []


def test_another_codec_is_refused_by_name(source, out, tmp_path, monkeypatch):
    versions = build_module.decoder_versions()
    monkeypatch.setattr(build_module, "decoder_versions", lambda: versions | {"jpeg": "simplejpeg 99"})

    with pytest.raises(WrongCall, match=rf"jpeg: {versions['jpeg']} -> simplejpeg 99"):
        packed(source, out)


def test_another_source_is_refused_by_name(source, out, tmp_path):

    with pytest.raises(WrongCall, match=r"images of train: 12, digest .* -> 15, digest "):
        packed(ilsvrc(tmp_path / "another", named_images(5)), out)


def test_an_archive_that_was_exchanged_for_one_of_the_same_layout_is_refused(source, out, tmp_path):
    archive = source / "ILSVRC2012_img_train.tar"
    state = archive.stat()
    flip(archive)
    os.utime(archive, ns=(state.st_atime_ns, state.st_mtime_ns + 10**9))

    with pytest.raises(WrongCall, match=r"ILSVRC2012_img_train\.tar: [\d,]+ bytes of .* -> [\d,]+ bytes of "):
        packed(source, out)


def bitmaps(dest: Path, *, inverted: bool = False) -> Path:
    """Eight images of two classes; inverted ones have the same sizes."""
    images = [Image.fromarray(pixels(i) ^ 0xFF if inverted else pixels(i)) for i in range(8)]
    data = [encoded(image, "BMP") for image in images]
    return folders(dest, {f"{k}": {f"{i}.bmp": data[i] for i in range(k, 8, 2)} for k in range(2)})


def test_images_of_folders_exchanged_for_others_of_the_same_sizes_make_no_set_of_two_sources(tmp_path):
    source, out = bitmaps(tmp_path / "source"), tmp_path / "set"
    packed(source, tmp_path / "undisturbed")
    stopped(source, out, after=2)
    kept = shutil.copytree(source, tmp_path / "kept")

    bitmaps(source, inverted=True)  # the folders' times stay what they were
    with pytest.raises(BadSource, match="the file was changed after it was listed"):
        packed(source, out)
    with pytest.raises(WrongCall, match=r"images of train: times of change, digest \w+ -> times of change, "):
        packed(source, out)

    shutil.copytree(kept, source, dirs_exist_ok=True)
    assert packed(source, out).shards_kept >= 2
    assert files_of(out) == files_of(tmp_path / "undisturbed")


def test_images_of_a_store_exchanged_for_others_of_the_same_sizes_are_another_source(tmp_path):
    def identity(source: Path) -> Identity:
        held = {f"/{tmp_path.name}/{name}": data for name, data in files_of(source).items()}
        fsspec.filesystem("memory").pipe(held)
        return two_each(source_at(f"memory://{tmp_path.name}"), tmp_path / "set").identity

    before = identity(bitmaps(tmp_path / "source"))
    again = two_each(source_at(f"memory://{tmp_path.name}"), tmp_path / "set").identity
    after = identity(bitmaps(tmp_path / "exchanged", inverted=True))

    assert again.differences(before) == []
    assert [line.partition(",")[0] for line in after.differences(before)] == ["images of train: times of change"]
    assert after.digest == before.digest


def test_an_image_may_be_of_any_time(tmp_path):
    source = bitmaps(tmp_path / "source")
    for place, year in enumerate((-9000, 0, 400, 9000)):  # of 1970
        os.utime(source / "0" / f"{2 * place}.bmp", (0, year * 31_556_952))

    assert packed(source, tmp_path / "set").manifest.splits["train"].samples == 8


def test_the_same_archives_elsewhere_continue(source, out, whole, tmp_path):
    source.rename(tmp_path / "moved")

    assert packed(tmp_path / "moved", out).shards_kept >= 3
    assert files_of(out) == whole


def test_restart_discards_no_file_of_others(source, out, tmp_path):
    (out / WORK_NAME / "notes.txt").write_text("precious")

    with pytest.raises(WrongCall, match=r"holds other things: \.build/notes\.txt"):
        build(two_each(source, out), workers=1, on_progress=lambda *_: None, restart=True)

    assert (out / WORK_NAME / "notes.txt").read_text() == "precious"


def test_a_damaged_plan_is_told_and_restart_begins_again(source, out, whole, tmp_path):
    cut(Output(out).plan)

    with pytest.raises(AlexshardError, match="plan of the unfinished build is damaged"):
        packed(source, out)
    build(two_each(source, out), workers=1, on_progress=lambda *_: None, restart=True)

    assert files_of(out) == whole


def test_the_digest_of_a_plan_does_not_hang_on_times(source, tmp_path):
    first = two_each(source, tmp_path / "set").identity
    os.utime(source / "ILSVRC2012_img_train.tar", ns=(0, 0))
    later = two_each(source, tmp_path / "set").identity

    assert later.digest == first.digest
    assert len(later.differences(first)) == 1
    later.save(tmp_path / "plan.json")
    assert Identity.load(tmp_path / "plan.json") == later


# --- the last stage


def test_the_last_stage_can_end_anywhere_and_is_done_again(tmp_path, monkeypatch):
    train = {w: [(n, d if i == 3 else b"") for i, (n, d) in enumerate(v)] for w, v in named_images().items()}
    source = ilsvrc(tmp_path / "source", train)  # shards of bad images alone, so that others change their numbers
    settings = {"samples_per_shard": 1, "max_bad": MaxBad.parse("100%")}
    packed(source, tmp_path / "undisturbed", **settings)
    whole, out = files_of(tmp_path / "undisturbed"), tmp_path / "set"
    stopped(source, out, after=16, **settings)
    rename, replace, renames = Path.rename, Path.replace, 0

    def ends_at(number: int, move: Callable[[Path, Path], Path]) -> Callable[[Path, Path], Path]:
        def moved(path: Path, target: Path) -> Path:
            nonlocal renames
            if Path(target).parent == out:
                renames += 1
                if renames > number:
                    raise Stop
            return move(path, target)

        return moved

    ends = 0
    for number in range(100):
        renames = 0
        with monkeypatch.context() as patch:
            patch.setattr(Path, "rename", ends_at(number, rename))
            patch.setattr(Path, "replace", ends_at(number, replace))
            try:
                report = packed(source, out, **settings)
                break
            except Stop:
                ends += 1
        assert not (out / "manifest.json").exists()

    assert ends == len(whole)  # one for each file of the set, which are renamed one by one
    assert report.shards_kept == 16
    assert files_of(out) == whole


@pytest.mark.parametrize(
    ("harm", "harmed", "moved"),
    [
        (Path.unlink, ("train-000002",), "all"),
        (flip, ("train-000001",), "up to the index of train-000003"),
        (cut, ("train-000000", "train-000002", "val-000000"), "all"),
    ],
)
def test_a_lost_record_of_a_shard_that_had_its_place_costs_that_shard_and_no_more(
    source, whole, tmp_path, monkeypatch, harm, harmed, moved
):
    out = tmp_path / "set"

    def full(*_arguments: object, **_options: object) -> None:
        raise Stop

    with monkeypatch.context() as patch, pytest.raises(Stop):
        patch.setattr("alexshard.tools.packing.finish.finish_shard_set", full)
        packed(source, out)
    assert len(list(out.glob("*.tar"))) == SHARDS
    for name in harmed:
        harm(out / WORK_NAME / f"{name}.json")
    if moved != "all":
        for name in ("train-000003.tar", "train-000004.tar", "train-000004.idx", "val-000001.idx"):
            (out / name).rename(out / WORK_NAME / name)

    report = packed(source, out)

    assert report.shards_kept == SHARDS - len(harmed)
    assert files_of(out) == whole


def test_behind_a_lost_record_of_bad_images_alone_shards_are_known_by_their_bytes(tmp_path, monkeypatch):
    train = {w: [(n, d if i == 3 else b"") for i, (n, d) in enumerate(v)] for w, v in named_images().items()}
    source, out = ilsvrc(tmp_path / "source", train), tmp_path / "set"
    settings = {"samples_per_shard": 1, "max_bad": MaxBad.parse("100%")}
    packed(source, tmp_path / "undisturbed", **settings)

    def full(*_arguments: object, **_options: object) -> None:
        raise Stop

    with monkeypatch.context() as patch, pytest.raises(Stop):
        patch.setattr("alexshard.tools.packing.finish.finish_shard_set", full)
        packed(source, out, **settings)
    records = {path.name: path for path in (out / WORK_NAME).glob("train-*.json")}
    empty = [path for path in records.values() if json.loads(path.read_bytes())["record"]["entry"] is None]
    assert (len(records), len(empty)) == (12, 9)
    for path in empty:
        flip(path)

    report = packed(source, out, **settings)

    assert report.shards_kept == 16 - len(empty)
    assert files_of(out) == files_of(tmp_path / "undisturbed")


def test_a_build_that_ended_behind_its_manifest_is_complete_and_tidied(source, whole, tmp_path, monkeypatch):
    out = tmp_path / "set"
    with monkeypatch.context() as patch:
        patch.setattr("alexshard.tools.packing.output.tidy", lambda _: None)
        packed(source, out)
    assert (out / WORK_NAME / "train-000000.json").exists()
    with pytest.raises(WrongCall, match="is a shard set already"):
        packed(source, out, seed=1)

    assert packed(source, out).was_complete
    assert files_of(out) == whole
    assert not (out / WORK_NAME).exists()


def test_a_finished_set_is_complete_for_its_own_command_and_not_touched(source, tmp_path):
    out = tmp_path / "set"
    packed(source, out)
    times = {path: path.stat().st_mtime_ns for path in out.iterdir()}

    report = packed(source, out)

    assert report.was_complete
    assert {path: path.stat().st_mtime_ns for path in out.iterdir()} == times
    assert report.manifest == Manifest.load(out)


def test_a_finished_set_that_lacks_a_shard_is_not_complete(source, tmp_path):
    out = tmp_path / "set"
    packed(source, out)
    (out / "train-000001.tar").unlink()

    with pytest.raises(AlexshardError, match=r"train-000001\.tar is not as it was written") as caught:
        packed(source, out)

    assert caught.value.exit_code == 1


# --- the lock


def test_a_second_build_is_told_who_holds_the_output(source, tmp_path):
    out = tmp_path / "set"
    first = alexshard("build", source, "--out", out, "--size", 32, "--samples-per-shard", 1, "-j", 1)
    with subprocess.Popen(first, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        while not list(out.glob(f"{WORK_NAME}/plan.json")):
            assert process.poll() is None
        process.send_signal(signal.SIGSTOP)
        second = subprocess.run(first, capture_output=True, text=True, check=False)
        process.send_signal(signal.SIGCONT)
        process.communicate()

    assert second.returncode == 2
    assert f"another build is at work on {out}" in second.stderr
    assert f"process {process.pid} on {platform.node()}, since 2" in second.stderr
    assert process.returncode == 0
    assert verify_shard_set(out) == []


@pytest.mark.parametrize("host", [platform.node(), "elsewhere"])
@pytest.mark.parametrize("code", [0, errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS])
def test_the_lock_of_a_dead_holder_is_taken_over(source, out, whole, tmp_path, monkeypatch, code, host):
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    lock = {"host": host, "pid": dead.pid, "since": "yesterday"}
    (out / WORK_NAME / "lock").write_text(json.dumps(lock))
    if code:
        monkeypatch.setattr(fcntl, "flock", no_locks(code))

    report = packed(source, out)

    assert len([remark for remark in report.remarks if "knows no locks" in remark]) == (1 if code else 0)
    assert files_of(out) == whole


def test_where_a_disk_knows_no_locks_a_living_process_keeps_others_away(source, out, tmp_path, monkeypatch):
    lock = {"host": platform.node(), "pid": os.getppid(), "since": "today"}
    (out / WORK_NAME / "lock").write_text(json.dumps(lock))
    monkeypatch.setattr(fcntl, "flock", no_locks(errno.ENOLCK))

    with pytest.raises(WrongCall, match="another build is at work") as caught:
        packed(source, out)

    assert caught.value.where == f"process {os.getppid()} on {platform.node()}, since today"


@pytest.mark.parametrize("at", ["mkdir", "is_dir", "open"])
def test_the_end_of_another_build_at_the_very_moment_costs_a_second_try_and_no_more(tmp_path, monkeypatch, at):
    out = tmp_path / "set"
    work = out / WORK_NAME
    work.mkdir(parents=True)
    real, ends = getattr(Path, at), []

    def ended_before(path: Path, *arguments: object, **options: object) -> object:
        if work in (path, path.parent) and not ends:
            ends.append(path)
            shutil.rmtree(out)  # all that it had made, as a build that failed leaves it
        return real(path, *arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(Path, at, ended_before)
        with locked(work, out) as remark:
            assert remark is None
            assert (work / "lock").stat().st_size > 0
    assert len(ends) == 1


def test_a_folder_that_cannot_be_made_is_an_error_of_the_disk_after_all_tries(tmp_path):
    (tmp_path / WORK_NAME).write_text("a file")

    with pytest.raises(FileExistsError), locked(tmp_path / WORK_NAME, tmp_path):
        raise AssertionError


def no_locks(code: int) -> Callable[..., None]:
    def flock(*_arguments: object) -> None:
        raise OSError(code, os.strerror(code))

    return flock


# --- workers and disks


def children() -> list[int]:
    return [child.pid for child in multiprocessing.active_children() if child.pid is not None]


@pytest.mark.parametrize("workers", [1, 2])
def test_a_worker_that_hangs_is_killed_and_named_and_the_same_call_continues(source, whole, tmp_path, workers):
    out = tmp_path / "set"
    stopped_workers: list[int] = []

    def hang(images: int, bad: int) -> None:
        if len(list(out.glob(f"{WORK_NAME}/*-*.json"))) >= 2 and not stopped_workers:
            for pid in children():
                os.kill(pid, signal.SIGSTOP)
                stopped_workers.append(pid)

    with pytest.raises(AlexshardError, match=r"a worker has told nothing for 1 s and was killed") as caught:
        build(two_each(source, out), workers=workers, on_progress=hang, hung_after_s=1)

    shard, where, process = caught.value.where.split(", ", 1)[0], caught.value.where, stopped_workers
    assert shard.endswith(".tar")
    assert "JPEG of ILSVRC2012_img_" in where or "writing them" in where
    assert any(where.endswith(f"process {pid}") for pid in process)
    assert caught.value.exit_code == 1
    assert children() == []
    assert packed(source, out).shards_kept >= 2
    assert files_of(out) == whole


def test_a_command_that_is_stopped_for_a_while_does_not_take_its_workers_for_hung(source, whole, tmp_path):
    from alexshard.tools.packing import workers as module

    clock = module._LivedTime()
    clock._looked -= 3600

    clock.look()

    assert 0 < clock.now <= 2 * module._TICK_S


def test_a_source_that_vanishes_and_comes_back_is_continued(source, whole, tmp_path):
    out, archive = tmp_path / "set", source / "ILSVRC2012_img_train.tar"

    def vanish(images: int, bad: int) -> None:
        if list(out.glob(f"{WORK_NAME}/train-000001.json")) and archive.exists():
            archive.rename(tmp_path / "unplugged")

    with pytest.raises(AlexshardError) as caught:
        build(two_each(source, out), workers=1, on_progress=vanish)
    (tmp_path / "unplugged").rename(archive)

    assert caught.value.exit_code == 1
    assert "ILSVRC2012_img_train.tar" in caught.value.where
    assert packed(source, out).shards_kept >= 2
    assert files_of(out) == whole


def test_an_archive_that_changes_while_it_is_packed_makes_no_set(source, tmp_path):
    out, archive = tmp_path / "set", source / "ILSVRC2012_img_train.tar"

    def touch(images: int, bad: int) -> None:
        if list(out.glob(f"{WORK_NAME}/val-000000.json")):
            os.utime(archive, ns=(0, 0))

    with pytest.raises(AlexshardError, match="the source changed") as caught:
        build(two_each(source, out), workers=1, on_progress=touch)

    assert str(archive) in caught.value.where
    assert not (out / "manifest.json").exists()


FULL_DISK = """
import sys
from pathlib import Path
from alexshard.shards import AlexshardError
from tests.tools.test_packing_resume import packed, two_each
from alexshard.tools.packing import build

source, disk = Path(sys.argv[1]), Path(sys.argv[2])
out, filler = disk / "set", disk / "filler"

def fill(images, bad):
    if list(out.glob(".build/train-000002.json")) and not filler.exists():
        with filler.open("wb", buffering=0) as file:
            try:
                while True:
                    file.write(bytes(4096))
            except OSError:
                pass

try:
    build(two_each(source, out), workers=2, on_progress=fill)
except AlexshardError as error:
    print(error.exit_code, error.what)
filler.unlink()
report = packed(source, out)
print(report.shards_kept >= 1, *sorted(path.name for path in out.iterdir()))
"""


def on_a_small_disk(*command: object) -> list[str]:
    """A command in a mount namespace of its own, where $DISK is an empty disk of one megabyte."""
    if shutil.which("unshare") is None:
        pytest.skip("NO SMALL DISK: unshare is not installed")
    script = 'disk=$(mktemp -d) && mount -t tmpfs -o size=1m none "$disk" && export DISK="$disk" && exec "$@"'
    user = [] if os.geteuid() == 0 else ["--user", "--map-root-user"]
    unshared = ["unshare", *user, "--mount", "sh", "-c", script, "sh"]
    if subprocess.run([*unshared, "true"], capture_output=True, check=False).returncode != 0:
        pytest.skip("NO SMALL DISK: a disk cannot be mounted here")
    return [*unshared, *map(str, command)]


def test_a_disk_that_fills_up_is_told_in_words_and_the_build_continues_when_there_is_room(source, whole, tmp_path):
    program = FULL_DISK.replace("sys.argv[2]", "__import__('os').environ['DISK']")
    command = on_a_small_disk(sys.executable, "-c", program, source)

    done = subprocess.run(command, capture_output=True, text=True, check=False)

    assert done.returncode == 0, done.stderr
    first, second = done.stdout.splitlines()
    assert first.startswith("1 ")
    assert first.endswith("cannot be written: No space left on device")
    assert second.split() == ["True", *sorted(whole)]


def test_a_folder_that_may_only_be_read_is_told_in_words(source, tmp_path):
    script = 'mkdir "$DISK/set" && mount -o remount,ro "$DISK" && exec "$@" --out "$DISK/set"'
    command = on_a_small_disk("sh", "-c", script, "sh", *alexshard("build", source, "--size", 32))

    done = subprocess.run(command, capture_output=True, text=True, check=False)

    assert done.returncode == 1, done.stderr
    assert "cannot be written: Read-only file system" in done.stderr
    assert "Traceback" not in done.stderr


# --- what a person is told


def command(source: Path, out: Path, *options: object) -> list[str]:
    return alexshard("build", source, "--out", out, "--size", 32, "--samples-per-shard", 2, *options)


def told(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(words, capture_output=True, text=True, check=False)


def test_what_was_taken_over_is_no_speed():
    stream = io.StringIO()

    with Progress("build", total=10, unit="images", stream=stream, every_s=0) as progress:
        progress.skip(10)

    assert stream.getvalue().startswith("build 10/10 images, 0 images/s")


def test_a_failed_command_says_how_far_it_came_and_what_continues_it(tmp_path):
    train = named_images() | {"n00000003": [("n00000003_0.JPEG", b""), ("n00000003_1.JPEG", b"")]}
    source, out = ilsvrc(tmp_path / "two words", train), tmp_path / "set"

    failed = told(*command(source, out, "--max-bad", "1", "--restart"))
    plan = told(*command(source, out, "--max-bad", "100%", "--dry-run"))
    other = told(*command(source, out, "--max-bad", "100%", "--seed", "1", "--dry-run"))
    done = told(*command(source, out, "--max-bad", "100%", "-j", "1"))
    again = told(*command(source, out))

    assert [each.returncode for each in (failed, plan, other, done, again)] == [1, 0, 0, 0, 0]
    lines = failed.stderr.splitlines()
    at = next(i for i, line in enumerate(lines) if line.startswith("finished and kept: "))
    finished = int(lines[at].split()[3])
    assert lines[at].endswith(f"of 7 shards ({2 * finished} of 14 images); the same command continues:")
    assert lines[at + 1].endswith(f"build '{source}' --out {out} --size 32 --samples-per-shard 2 --max-bad 1")
    assert (
        f"there       {finished} of 7 shards ({2 * finished} of 14 images) of an unfinished build" in plan.stdout
    )
    assert "an unfinished build that differs, seed: 0 -> 1: --restart" in other.stdout
    assert ("next:" in plan.stdout, "next:" in other.stdout) == (True, False)
    for words in ("CPU time ", "peak memory ", "images/s", "quarantined:", "next:\n  alextrain run --shards "):
        assert words in done.stdout
    assert (f"taken over   {finished} of 7 shards ({2 * finished} images)" in done.stdout) == (finished > 0)
    assert "complete already: nothing was done" in again.stdout
