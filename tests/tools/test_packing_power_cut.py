"""Power cuts, as far as a test can show them: what the disk may hold after each of a build's file operations.

The operations are recorded from a real build, by its processes; power_cut.py says what may be left of them.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
from alexshard.shards import verify_shard_set
from alexshard.tools.packing import BuildReport, BuildSettings, MaxBad, build, plan_build
from alexshard.tools.packing.shard import pack_shard
from alexshard.tools.verifying import verified

from tests.conftest import alexshard, run
from tests.tools.drawn import SMALL, files_of, ilsvrc, named_images
from tests.tools.power_cut import IN_ORDER, Disk, Operation, State, cuts, make, recorded, state_of
from tests.tools.watching import needs_proc, watched

pytestmark = needs_proc

SEED = 20261121
RECORD = re.compile(r"/\.build/(train|val)-\d+\.json$")
OPTIONS = ("--size", 32, "--samples-per-shard", 6, "--max-bad", 1)


@dataclass(frozen=True, slots=True)
class Recording:
    """A build and everything it did to files."""

    source: Path
    start: State  # of the disk, before
    operations: list[Operation]
    files: dict[str, bytes]  # of the finished set


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    train = named_images(7)
    train["n00000002"][4] = ("n00000002_4.JPEG", b"text")
    return ilsvrc(tmp_path_factory.mktemp("source") / "source", train)


def record(source: Path, disk: Path, *arguments: object) -> Recording:
    """Run a command on the set of a disk that must end well."""
    start, blobs, out = state_of(disk), disk.parent / "blobs", disk / "sets" / "drawn"
    blobs.mkdir()
    done = watched(*arguments, below=disk, blobs=blobs)
    assert done.code == 0, done
    assert verify_shard_set(out) == []
    return Recording(source, start, recorded(blobs), files_of(out))


@pytest.fixture(scope="module")
def recording(source, tmp_path_factory) -> Recording:
    """A build from nothing."""
    disk = tmp_path_factory.mktemp("recording") / "disk"
    disk.mkdir()
    return record(source, disk, "build", source, "--out", disk / "sets" / "drawn", *OPTIONS, "-j", 2)


@pytest.fixture(scope="module")
def continuing(source, tmp_path_factory) -> Recording:
    """A build that goes on after another was killed in its last stage, when half of the shards had been moved."""
    disk = tmp_path_factory.mktemp("continuing") / "disk"
    disk.mkdir()
    command = ("build", source, "--out", disk / "sets" / "drawn", *OPTIONS, "-j", 2)
    killed = watched(*command, below=disk, since=r"^rename \S+/\.build/train-\S+ sets/drawn/train-", at=6)
    assert killed.was_killed, killed
    return record(source, disk, *command)


def all_cuts(operations: Iterable[Operation], start: State | None = None) -> Iterator[tuple[int, str, State]]:
    """What the disk may hold after each operation: number of operations, words, state."""
    disk, draw = Disk(start or {}), random.Random(SEED)
    for number, operation in enumerate(operations, 1):
        disk.apply(operation)
        for words, state in cuts(disk, draw):
            yield number, f"after {number} operations, last {operation}: {words}", state


def of_the_set(state: State) -> dict[str, bytes]:
    """Files of a state that belong to the set, not to the work on it."""
    prefix = "sets/drawn/"
    return {
        path.removeprefix(prefix): content
        for path, content in state.items()
        if content is not None and path.startswith(prefix) and "/.build/" not in path
    }


def false_sets(operations: Iterable[Operation], files: dict[str, bytes], start: State | None = None) -> list[str]:
    """The cuts that leave a manifest without everything that it names being there."""
    return [
        words
        for _, words, state in all_cuts(operations, start)
        if "manifest.json" in of_the_set(state) and of_the_set(state) != files
    ]


def finished_shards(operations: Sequence[Operation]) -> set[str]:
    """Shards whose record had its name, and the name had reached the disk."""
    renamed, finished = set(), set()
    for operation in operations:
        if operation.what == "rename" and RECORD.search(operation.paths[1]):
            renamed.add(Path(operation.paths[1]).stem)
        elif operation.what == "sync_folder" and operation.paths[0].endswith(".build"):
            finished |= renamed
    return finished


def whole_shards(state: State, wanted: dict[str, bytes]) -> set[str]:
    """Shards of a state with a record that is whole, and the bytes of tar and index in either place."""
    whole = set()
    for name in (name.removesuffix(".tar") for name in wanted if name.endswith(".tar")):
        places = ("sets/drawn", "sets/drawn/.build")
        files_there = all(
            any(state.get(f"{place}/{file}") == wanted[file] for place in places)
            for file in (f"{name}.tar", f"{name}.idx")
        )
        try:
            record = json.loads(state.get(f"sets/drawn/.build/{name}.json") or b"")
        except ValueError:
            continue
        if files_there and record:
            whole.add(name)
    return whole


def continued(recording: Recording, state: State, folder: Path) -> tuple[Path, BuildReport]:
    """Make a state and run the same build on it, in this very process."""

    def pack_here(plans, job, *, on_progress, on_shard) -> None:
        for plan in plans:
            refusals = []
            pack_shard(
                plan,
                job.containers,
                job.image_format,
                job.folder,
                on_image=lambda refusal: refusals.append(refusal) if refusal else None,  # noqa: B023
            )
            on_progress(len(plan.samples), refusals)
            on_shard(plan.name)

    out = make(state, folder) / "sets" / "drawn"
    settings = BuildSettings(
        source=recording.source, out=out, image=SMALL, samples_per_shard=6, max_bad=MaxBad.parse("1")
    )
    plan = plan_build(settings)
    return out, build(plan, workers=1, on_progress=lambda *_: None, executor=pack_here)


def test_the_record_of_a_build_leads_to_its_files(recording):
    *_, (_, words, state) = all_cuts(recording.operations)

    assert len(recording.operations) > 100
    assert of_the_set(state) == recording.files, words


def test_after_a_power_cut_there_is_no_manifest_or_everything_that_it_names(recording):
    with_manifest = [
        words for _, words, state in all_cuts(recording.operations) if "manifest.json" in of_the_set(state)
    ]

    assert with_manifest
    assert false_sets(recording.operations, recording.files) == []


def test_a_shard_that_was_finished_outlives_a_power_cut(recording):
    planned = finished_shards(recording.operations)
    lost = [
        (words, sorted(missing))
        for number, words, state in all_cuts(recording.operations)
        if words.partition(": ")[2].startswith(IN_ORDER) and "sets/drawn/manifest.json" not in state
        for missing in [finished_shards(recording.operations[:number]) - whole_shards(state, recording.files)]
        if missing
    ]

    assert len(planned) == 5
    assert lost == []


def assert_all_continue(recording: Recording, states: Iterable[tuple[str, State]], folder: Path) -> None:
    for place, (words, state) in enumerate(states):
        out, report = continued(recording, state, folder / str(place))

        assert files_of(out) == recording.files, words
        assert not (out / ".build").exists(), words
        if words.partition(": ")[2].startswith(IN_ORDER) and not report.was_complete:
            assert report.shards_kept == len(whole_shards(state, recording.files)), words


def different(recording: Recording) -> list[tuple[str, State]]:
    """Every state that a cut may leave, once, with words for it."""
    cuts = all_cuts(recording.operations, recording.start)
    return list({frozenset(state.items()): (words, state) for _, words, state in cuts}.values())


@pytest.mark.parametrize("part", range(4))
def test_after_a_power_cut_the_same_build_goes_on_to_the_same_bytes(recording, tmp_path, part):
    states = different(recording)

    assert len(states) > 100
    assert_all_continue(recording, states[part::4], tmp_path)


def test_a_power_cut_while_a_build_goes_on_after_a_kill_is_survived_too(continuing, tmp_path):
    states = different(continuing)

    assert any(
        "rename sets/drawn/train-000000.tar sets/drawn/.build" in str(done) for done in continuing.operations
    )
    assert false_sets(continuing.operations, continuing.files, continuing.start) == []
    assert len(states) > 50
    assert_all_continue(continuing, states, tmp_path)


@pytest.mark.parametrize("words", ["all names arrived", "nothing unsynced arrived", "some changes arrived"])
def test_after_a_power_cut_the_same_command_goes_on_to_the_same_bytes(recording, tmp_path, words):
    states = [state for _, about, state in all_cuts(recording.operations) if f": {words}" in about]
    make(states[len(states) * 2 // 3], tmp_path / "disk")
    out = tmp_path / "disk" / "sets" / "drawn"

    run(*alexshard("build", recording.source, "--out", out, *OPTIONS, "-j", 2))

    assert files_of(out) == recording.files
    assert not (out / ".build").exists()


# --- repairs


@pytest.fixture(scope="module")
def repairing(source, recording, tmp_path_factory) -> Recording:
    """A repair of a set with two broken shards, a broken manifest and two files lost."""
    disk = tmp_path_factory.mktemp("repairing") / "disk"
    out = disk / "sets" / "drawn"
    out.mkdir(parents=True)
    for name, data in recording.files.items():
        (out / name).write_bytes(data)
    for name in ("manifest.json", "train-000001.tar", "val-000000.tar"):
        data = recording.files[name]
        (out / name).write_bytes(data[:300] + bytes([data[300] ^ 1]) + data[301:])
    for name in ("samples.tsv", "train-000000.idx"):
        (out / name).unlink()
    return record(source, disk, "verify", out, "--repair", source)


def test_after_a_power_cut_every_file_of_a_set_in_repair_is_as_before_or_right(recording, repairing):
    before, right = of_the_set(repairing.start), recording.files

    harm = [
        (words, name)
        for _, words, state in all_cuts(repairing.operations, repairing.start)
        for name in {**before, **right}
        if of_the_set(state).get(name) not in (before.get(name), right[name])
    ]

    assert before != right == repairing.files
    assert harm == []


def test_after_a_power_cut_the_same_repair_is_made(recording, repairing, tmp_path):
    for place, (words, state) in enumerate(random.Random(SEED).sample(different(repairing), 8)):
        out = make(state, tmp_path / str(place)) / "sets" / "drawn"

        done = verified(out, deep=False, source=str(repairing.source))

        assert done.problems == [], words
        assert files_of(out) == recording.files, words
        assert not (out / ".build").exists(), words


# --- these tests can fail


def test_without_its_fsyncs_a_build_would_be_found_out(recording):
    careless = [operation for operation in recording.operations if operation.what != "sync"]

    assert any("zeros" in words for words in false_sets(careless, recording.files))


@pytest.mark.parametrize("folder", ["sets/drawn", "sets/drawn/.build"])
def test_without_bringing_names_to_the_disk_a_build_would_be_found_out(recording, folder):
    careless = [
        operation
        for operation in recording.operations
        if (operation.what, operation.paths[0]) != ("sync_folder", folder)
    ]

    if folder == "sets/drawn":
        assert any("the last change alone arrived" in words for words in false_sets(careless, recording.files))
    else:
        assert finished_shards(careless) == set()
