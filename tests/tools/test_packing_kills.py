"""Builds and repairs that are killed: the same command goes on, and ends with the bytes of one that was not.

Kills are real (SIGKILL to a worker, the coordinator or all), at moments that are drawn: not after some time, but
at the n-th operation on a file of the output (see watching.py).
"""

from __future__ import annotations

import os
import random
import re
import shutil
import signal
from pathlib import Path

import pytest
from alexshard.shards import verify_shard_set

from tests.tools.drawn import ilsvrc, named_images
from tests.tools.watching import Done, digests_of, finished_shards, needs_proc, watched

pytestmark = needs_proc

SEED = int(os.environ.get("ALEXSHARD_KILL_SEED", "20261121"))
OPTIONS = ("--size", 32, "--samples-per-shard", 4, "--max-bad", 1, "-j", 2)
NUM_SHARDS = 8  # seven of train, one of val
KINDS = ("kill this", "kill coordinator", "kill all")
FIRST_MOVE = r"^rename \.build/train-\S+ train-"  # the first step of the last stage


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    train = named_images(9)
    train["n00000002"][4] = ("n00000002_4.JPEG", b"text")
    return ilsvrc(tmp_path_factory.mktemp("source") / "source", train)


@pytest.fixture(scope="module")
def undisturbed(source, tmp_path_factory) -> tuple[dict[str, str], Done]:
    """The files of a build that nobody disturbed, by digest, and how it went."""
    out = tmp_path_factory.mktemp("undisturbed") / "set"
    done = build(source, out)
    assert done.code == 0, done
    assert verify_shard_set(out) == []
    return digests_of(out), done


@pytest.fixture(scope="module")
def packed(source, tmp_path_factory) -> Path:
    """An output whose build was killed when all shards were finished and none had its place."""
    out = tmp_path_factory.mktemp("packed") / "set"
    done = build(source, out, at=1, since=FIRST_MOVE)
    assert done.was_killed, done
    assert len(finished_shards(out)) == NUM_SHARDS
    return out


def build(source: Path, out: Path, **watching: object) -> Done:
    return watched("build", source, "--out", out, *OPTIONS, below=out, **watching)


def assert_no_set_or_a_whole_one(out: Path, wanted: dict[str, str], context: object) -> None:
    if (out / "manifest.json").exists():
        assert verify_shard_set(out) == [], context
        assert {name: digests_of(out).get(name) for name in wanted} == wanted, context


def assert_continues(source: Path, out: Path, wanted: dict[str, str]) -> None:
    """The same command ends well, with the bytes of `wanted`, and packs no finished shard again."""
    finished = finished_shards(out)
    done = build(source, out)
    assert done.code == 0, done
    assert digests_of(out) == wanted, done
    now = {name: ((out / name).stat().st_ino, (out / name).stat().st_mtime_ns) for name in finished}
    assert now == finished, done


# --- builds


@pytest.mark.parametrize("chain", range(3))
def test_a_build_killed_seven_times_at_any_moment_ends_with_the_same_bytes(source, undisturbed, tmp_path, chain):
    (wanted, whole), draw = undisturbed, random.Random(f"{SEED} {chain}")
    out, kills = tmp_path / "set", []
    while len(kills) < 7:
        finished = finished_shards(out)
        # Each run has some forty operations of its own: what it must undo, then a shard or two.
        then, at = draw.choice(KINDS), draw.randint(1, len(whole.events) // 4)
        done = build(source, out, at=at, then=then)
        context = f"seed {SEED}, kills {kills}, now {then} at {at}: {done}"
        if done.code == 0:  # before its end it had nothing more to do
            assert digests_of(out) == wanted, context
            shutil.rmtree(out)
            continue
        kills.append(f"{then} at {at}: {done.events[-1]}")
        print(kills[-1])
        assert done.was_killed, context
        assert "Traceback" not in done.err, context
        assert_no_set_or_a_whole_one(out, wanted, context)
        assert finished_shards(out).items() >= finished.items(), context

    assert_continues(source, out, wanted)


def test_a_worker_that_is_killed_ends_the_build_with_one_message_and_finished_shards_stay(
    source, undisturbed, tmp_path
):
    wanted, _ = undisturbed

    # Of two workers one has finished a shard by then: each of its four files is opened, synced, renamed, and the
    # folder synced.
    done = build(source, tmp_path / "set", at=2 * 16, then="kill this", role="worker")

    assert (done.code, done.out) == (1, "")
    assert done.err.count("error: ") == 1
    assert "a worker died (killed by SIGKILL)" in done.err
    assert "the same command continues" in done.err
    assert finished_shards(tmp_path / "set")
    assert_continues(source, tmp_path / "set", wanted)


def test_a_build_killed_in_the_middle_of_a_write_trusts_no_half_file(source, undisturbed, tmp_path):
    (wanted, _), out = undisturbed, tmp_path / "set"
    for most in (500, 2_000, 9_000, 20_000):  # within plan, listing, shard and sums of a shard
        done = build(source, out, file_bytes=most)
        half = [path for path in out.rglob("*.part*") if path.stat().st_size == most]
        # What a worker leaves half-written is tidied away by the coordinator, which outlives it.
        assert half if done.code == -signal.SIGXFSZ else "a worker died (killed by SIGXFSZ)" in done.err, done
        assert not (out / "manifest.json").exists()

    assert_continues(source, out, wanted)


def test_a_build_killed_again_and_again_in_its_last_stage_ends_with_the_same_bytes(
    source, undisturbed, packed, tmp_path
):
    (wanted, whole), draw = undisturbed, random.Random(f"{SEED} last stage")
    out = shutil.copytree(packed, tmp_path / "set")
    texts = [event.text for event in whole.events]
    first = next(place for place, text in enumerate(texts) if re.search(FIRST_MOVE, text))
    manifest = texts.index("rename manifest.json.part manifest.json")
    for at in draw.sample(range(2, manifest - first + 1), 5):
        finished = finished_shards(out)
        done = build(source, out, at=at, since=FIRST_MOVE)
        assert done.was_killed, done
        assert_no_set_or_a_whole_one(out, wanted, done)
        assert finished_shards(out).items() >= finished.items(), done

    assert_continues(source, out, wanted)


@pytest.mark.parametrize(
    ("since", "at", "is_set"),
    [
        (r"^rename samples.tsv.part", 1, False),
        (r"^sync SHA256SUMS.part", 1, False),
        (r"^open manifest.json.part", 1, False),
        (r"^rename manifest.json.part", 1, False),
        (r"^rename manifest.json.part", 2, True),
        (r"^rename manifest.json.part", 8, True),
        (r"^remove .build/lock", 1, True),
        (r"^rmdir .build", 1, True),
    ],
)
def test_killed_near_its_end_a_build_is_no_set_or_a_whole_one(
    source, undisturbed, packed, tmp_path, since, at, is_set
):
    wanted, _ = undisturbed
    out = shutil.copytree(packed, tmp_path / "set")

    done = build(source, out, since=since, at=at, then="kill coordinator")

    assert done.was_killed, done
    assert (out / "manifest.json").exists() == is_set
    assert_no_set_or_a_whole_one(out, wanted, done)
    assert_continues(source, out, wanted)


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def test_finished_shards_that_were_damaged_since_are_packed_again_and_no_others(
    source, undisturbed, packed, tmp_path
):
    wanted, _ = undisturbed
    out = shutil.copytree(packed, tmp_path / "set")
    work = out / ".build"
    flip(work / "train-000000.tar")
    os.truncate(work / "train-000001.tar", 5120)
    (work / "train-000002.tar").unlink()
    flip(work / "train-000003.idx")
    flip(work / "train-000004.npz")
    flip(work / "train-000005.json")
    before = {path.name: path.stat().st_ino for path in work.glob("*.tar")}

    done = build(source, out)

    assert done.code == 0, done
    assert digests_of(out) == wanted
    kept = {name for name in wanted if name.endswith(".tar") and before.get(name) == (out / name).stat().st_ino}
    assert kept == {"train-000006.tar", "val-000000.tar"}
    assert "6 of 8 finished shards were not as they were left" in done.out


# --- repairs

BROKEN = (
    "manifest.json",
    "train-000001.tar",
    "val-000000.tar",
    "train-000003.idx",
    "samples.tsv",
    "mean_image.npy",
)


@pytest.fixture(scope="module")
def broken(source, undisturbed, tmp_path_factory) -> Path:
    """The set with a flipped bit in two shards, in an index and in the manifest, without two files."""
    wanted, _ = undisturbed
    folder = tmp_path_factory.mktemp("broken") / "set"
    assert build(source, folder).code == 0
    for name in BROKEN[:4]:
        flip(folder / name)
    for name in BROKEN[4:]:
        (folder / name).unlink()
    assert {name for name in wanted if digests_of(folder).get(name) != wanted[name]} == set(BROKEN)
    return folder


def repair(source: Path, folder: Path, **watching: object) -> Done:
    return watched("verify", folder, "--repair", source, below=folder, **watching)


def test_a_repair_killed_at_any_moment_has_done_no_harm_and_is_made_by_the_same_command(
    source, undisturbed, broken, tmp_path
):
    (wanted, _), draw = undisturbed, random.Random(f"{SEED} repair")
    whole = repair(source, shutil.copytree(broken, tmp_path / "once"))
    assert digests_of(tmp_path / "once") == wanted, whole
    places = [place for place, event in enumerate(whole.events, 1) if "rename .build/repair" in event.text]
    last = max(place for place in places if not whole.events[place - 1].text.endswith(".part"))

    folder = shutil.copytree(broken, tmp_path / "often")
    moments = [("kill all", last), *((draw.choice(KINDS), draw.randint(1, last)) for _ in range(5))]
    for then, at in reversed(moments):  # the last of them among the moves
        right = {name for name, digest in digests_of(folder).items() if wanted.get(name) == digest}
        done = repair(source, folder, at=at, then=then)
        print(f"seed {SEED}, {then} at {at}: {done.events[-1]}")
        assert done.was_killed or at > len(done.events), done
        assert "Traceback" not in done.err, done
        assert {name for name in right if digests_of(folder).get(name) != wanted[name]} == set(), done

    done = repair(source, folder)
    assert done.code == 0, done
    assert digests_of(folder) == wanted, done


@pytest.mark.parametrize("at", [1, 2, 5])
def test_a_repair_killed_when_all_is_in_its_place_leaves_a_sound_set_and_is_tidied_by_the_same_command(
    source, undisturbed, broken, tmp_path, at
):
    wanted, _ = undisturbed
    folder = shutil.copytree(broken, tmp_path / "set")

    done = repair(source, folder, at=at, since=r"^sync_folder \.$")

    assert done.was_killed, done
    assert verify_shard_set(folder) == []
    assert (folder / ".build").exists()
    done = repair(source, folder)
    assert (done.code, digests_of(folder)) == (0, wanted), done
