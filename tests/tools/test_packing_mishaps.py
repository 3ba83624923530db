"""What happens to a machine while it builds: the disk fills up, the source changes, a worker hangs.

Each ends with exit code 1 and one message that says what to do; finished shards stay, and once all is mended the
same command goes on to the same bytes. Disks, modes and processes are real.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
from alexshard.shards import read_rows

from tests.conftest import alexshard
from tests.tools.drawn import folders, ilsvrc, jpeg, named_images
from tests.tools.watching import Done, digests_of, finished_shards, needs_proc, watched

pytestmark = needs_proc

OPTIONS = ("--size", 32, "--samples-per-shard", 6, "-j", 2)
# Operations of the workers: four (open, sync, rename, sync the folder) for each of four files of a shard of train.
SECOND_SHARD = 2 * 16  # two workers: one of them has finished a shard and begun another
ALL_SHARDS = 4 * 16 + 12  # before the very last
LAST_STAGE = r"^rename \.build/train-\S+ train-"
ARCHIVE = "ILSVRC2012_img_train.tar"


@pytest.fixture
def source(tmp_path) -> Path:
    return ilsvrc(tmp_path / "source", named_images(8))


@pytest.fixture(scope="module")
def wanted(tmp_path_factory) -> dict[str, str]:
    """The files of a build that nothing happened to, by digest."""
    folder = tmp_path_factory.mktemp("wanted")
    done = build(ilsvrc(folder / "source", named_images(8)), folder / "set")
    assert done.code == 0, done
    return digests_of(folder / "set")


def build(source: Path, out: Path, *options: object, **watching: object) -> Done:
    return watched("build", source, "--out", out, *OPTIONS, *options, below=out, **watching)


def assert_ends_in_words(done: Done, *words: str) -> None:
    """It failed with one message, which says all these words and what to do."""
    assert (done.code, done.out) == (1, ""), done
    assert "Traceback" not in done.err, done
    assert done.err.count("error: ") == done.err.count("what to do: ") == 1, done
    assert [word for word in words if word not in done.err] == [], done


def assert_continues(
    source: Path, out: Path, wanted: dict[str, str], *, least: int = 0, **watching: object
) -> None:
    """The same command ends well with the bytes of `wanted`, and packs none of at least so many shards again."""
    here = watching.pop("view", out)
    assert isinstance(here, Path)
    assert not (here / "manifest.json").exists()
    finished = finished_shards(here)
    assert len(finished) >= least
    done = build(source, out, **watching)
    assert done.code == 0, done
    assert digests_of(here) == wanted
    now = {name: ((here / name).stat().st_ino, (here / name).stat().st_mtime_ns) for name in finished}
    assert now == finished


# --- a full disk


@dataclass(frozen=True, slots=True)
class SmallDisk:
    """A file system of a few megabytes that only processes run with `prefix` see."""

    path: Path
    prefix: tuple[str, ...]
    view: Path  # where this process sees the same

    def run(self, *command: object) -> None:
        subprocess.run([*self.prefix, *map(str, command)], check=True)


@pytest.fixture
def small_disk(tmp_path) -> Iterator[SmallDisk]:
    path = tmp_path / "disk"
    path.mkdir()
    script = 'mount -t tmpfs -o size=8m none "$1" && echo mounted && cat'
    for rights, enter in (
        ((), ("--mount",)),
        (("--user", "--map-root-user"), ("--user", "--preserve-credentials", "--mount")),
    ):
        if shutil.which("unshare") is None or shutil.which("nsenter") is None:
            break
        command = ["unshare", *rights, "--mount", "sh", "-c", script, "sh", str(path)]
        with subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        ) as process:
            assert process.stdout is not None
            if process.stdout.readline() == "mounted\n":
                view = Path(f"/proc/{process.pid}/root") / path.relative_to("/")
                yield SmallDisk(path, ("nsenter", "--target", str(process.pid), *enter), view)
                process.communicate()
                return
    pytest.skip("NOT TESTED: this machine lets nobody mount a small disk (unshare, nsenter, tmpfs)")


@pytest.mark.parametrize(
    ("role", "since", "at", "least"),
    [
        pytest.param("coordinator", r"^open .build/plan.json.part", 1, 0, id="plan"),
        pytest.param("worker", "", SECOND_SHARD, 1, id="shard"),
        pytest.param("coordinator", LAST_STAGE, 16, 5, id="last stage"),
    ],
)
def test_a_disk_that_fills_up_ends_the_build_and_room_lets_it_go_on(
    source, wanted, small_disk, role, since, at, least
):
    out, filler = small_disk.path / "set", small_disk.path / "filler"

    done = build(
        source,
        out,
        role=role,
        since=since,
        at=at,
        then=f"cat /dev/zero > '{filler}' 2> /dev/null",
        prefix=small_disk.prefix,
    )

    assert_ends_in_words(done, "cannot be written: No space left on device", "make room")
    small_disk.run("rm", filler)
    assert_continues(source, out, wanted, least=least, prefix=small_disk.prefix, view=small_disk.view / "set")


def test_a_disk_that_may_only_be_read_is_told_in_words(source, wanted, small_disk):
    out = small_disk.path / "set"
    small_disk.run("mount", "-o", "remount,ro", small_disk.path)

    assert_ends_in_words(
        build(source, out, prefix=small_disk.prefix), "cannot be written: Read-only file system", "mend the disk"
    )
    assert list(small_disk.view.iterdir()) == []

    small_disk.run("mount", "-o", "remount,rw", small_disk.path)
    assert_continues(source, out, wanted, prefix=small_disk.prefix, view=small_disk.view / "set")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="NOT TESTED: there is no /dev/full")
@pytest.mark.parametrize("name", ["samples.tsv", "SHA256SUMS", "manifest.json"])
def test_a_disk_that_is_full_in_the_last_stage_leaves_no_set(source, wanted, tmp_path, name):
    out = tmp_path / "set"

    # Whatever is written to /dev/full meets a full disk.
    done = build(source, out, since=rf"^open {name}.part", at=1, then=f"ln -s /dev/full '{out}/{name}.part'")

    assert_ends_in_words(done, "cannot be written: No space left on device", "make room")
    assert_continues(source, out, wanted, least=5)


def test_a_disk_that_takes_no_large_files_is_told_in_words(source, wanted, tmp_path):
    limited = "import os, resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (9000, 9000)); " + (
        "os.execv(sys.argv[1], sys.argv[1:])"
    )
    command = alexshard("build", source, "--out", tmp_path / "set", *OPTIONS)

    ended = subprocess.run([sys.executable, "-c", limited, *command], capture_output=True, text=True, check=False)

    assert_ends_in_words(
        Done(ended.returncode, ended.stdout, ended.stderr, ()), "cannot be written: File too large"
    )
    assert_continues(source, tmp_path / "set", wanted)


# --- folders that may not be written to


@pytest.fixture(scope="session")
def bound_by_modes() -> Sequence[str]:
    """A command that runs another one so that the modes of files bind it; root they do not."""
    if os.geteuid() != 0:
        return ()
    prefix = ("setpriv", "--bounding-set=-dac_override,-dac_read_search", "--inh-caps=-all")
    if shutil.which("setpriv") is None or subprocess.run([*prefix, "true"], check=False).returncode:
        pytest.skip("NOT TESTED: root is bound by no modes here, and setpriv cannot change that")
    return prefix


@pytest.mark.parametrize("name", ["set", "deep/down/set"])
def test_a_folder_that_may_not_be_written_to_is_told_before_the_work(
    source, wanted, bound_by_modes, tmp_path, name
):
    folder = tmp_path / "theirs"
    folder.mkdir(mode=0o555)

    done = build(source, folder / name, prefix=bound_by_modes)

    assert_ends_in_words(done, "cannot be written: Permission denied", "a folder that you may write to")
    assert list(folder.iterdir()) == []
    folder.chmod(0o755)
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    assert_continues(source, folder / name, wanted, prefix=bound_by_modes)


def test_a_folder_that_may_no_longer_be_written_to_ends_the_build(source, wanted, bound_by_modes, tmp_path):
    out = tmp_path / "set"

    done = build(
        source,
        out,
        role="worker",
        at=SECOND_SHARD,
        then=f"chmod 555 '{out}/.build'",
        prefix=bound_by_modes,
    )

    assert_ends_in_words(done, "cannot be written: Permission denied", "a folder that you may write to")
    (out / ".build").chmod(0o755)
    assert_continues(source, out, wanted, least=1, prefix=bound_by_modes)


# --- a source that goes or changes


REMOVED = "mv {archive} {kept}"
CUT = "mv {archive} {kept}; head -c 9000 {kept} > {archive}"
REPLACED = "mv {archive} {kept}; cp {kept} {archive}"
WRITTEN_TO = "cp -p {archive} {kept}; echo x >> {archive}"


@pytest.mark.parametrize(
    ("what", "at", "words"),
    [
        pytest.param(REMOVED, SECOND_SHARD, "No such file", id="removed"),
        pytest.param(CUT, SECOND_SHARD, "changed", id="cut"),
        pytest.param(REPLACED, SECOND_SHARD, "changed", id="replaced"),
        pytest.param(WRITTEN_TO, SECOND_SHARD, "changed", id="written to"),
        pytest.param(REMOVED, ALL_SHARDS, "No such file", id="removed after its last image was read"),
        pytest.param(REPLACED, ALL_SHARDS, "changed", id="replaced after its last image was read"),
    ],
)
def test_an_archive_that_goes_or_changes_ends_the_build_until_it_is_put_back(
    source, wanted, tmp_path, what, at, words
):
    archive, kept, out = source / ARCHIVE, tmp_path / "kept", tmp_path / "set"

    done = build(source, out, role="worker", at=at, then=what.format(archive=f"'{archive}'", kept=f"'{kept}'"))

    assert_ends_in_words(done, words, ARCHIVE)
    kept.replace(archive)
    assert_continues(source, out, wanted, least=1 if at == SECOND_SHARD else 5)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> tuple[Path, Path]:
    """A source with a folder of images per class, and its shard set."""
    folder = tmp_path_factory.mktemp("pictures")
    classes = {
        f"train/{name}": {f"{name}{i}.jpg": jpeg(20 * place + i) for i in range(12)}
        for place, name in enumerate(("cat", "dog"))
    }
    done = build(folders(folder / "source", classes), folder / "set")
    assert done.code == 0, done
    return folder / "source", folder / "set"


@pytest.mark.parametrize(
    ("what", "words"),
    [
        pytest.param("rm {image}", "No such file", id="removed"),
        pytest.param("truncate -s 100 {image}", "100 are there", id="truncated"),
        pytest.param("echo x >> {image}", "more are there", id="longer"),
        pytest.param("echo x | dd of={image} conv=notrunc", "changed after it was listed", id="of the same size"),
    ],
)
def test_a_folder_of_images_that_changes_ends_the_build_until_it_is_put_back(pictures, tmp_path, what, words):
    untouched, packed = pictures
    source, out = shutil.copytree(untouched, tmp_path / "source"), tmp_path / "set"
    # The last one in the order of shards: it is read when others are finished.
    name = list(read_rows(packed / "samples.tsv"))[-1].original
    image = next(path for path in (source / "train" / name, source / name) if path.exists())

    done = build(source, out, role="worker", at=2, then=what.format(image=f"'{image}'"))

    assert_ends_in_words(done, words, image.name)
    shutil.copy2(next(untouched.rglob(image.name)), image)
    assert_continues(source, out, digests_of(packed))


# --- a worker that hangs


def test_a_worker_that_is_stopped_is_taken_for_hung_and_the_same_command_continues(source, wanted, tmp_path):
    out = tmp_path / "set"

    done = build(source, out, "--hung-after", 2, role="worker", at=SECOND_SHARD, then="stop this")

    assert_ends_in_words(done, "a worker has told nothing for 2 s and was killed", "--hung-after")
    assert_continues(source, out, wanted, least=1)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="NOT TESTED: there is no /proc")
def test_a_signal_to_all_processes_is_noticed_by_the_coordinator_alone(source, tmp_path):
    status = tmp_path / "status"

    done = build(source, tmp_path / "set", role="worker", at=1, then=f"cat /proc/$PPID/status > '{status}'")

    assert done.code == 0, done
    fields = dict(line.split(":\t", 1) for line in status.read_text(encoding="utf-8").splitlines())
    blocked = int(fields["SigBlk"], 16)
    assert {number for number in (signal.SIGINT, signal.SIGTERM) if not blocked >> (number - 1) & 1} == set()
