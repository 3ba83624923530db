"""Whole builds: what comes out, on real sources and hostile ones, and that nothing half-done looks complete."""

from __future__ import annotations

import errno
import fcntl
import io
import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import tracemalloc
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from alexshard.shards import (
    AlexshardError,
    ImageFormat,
    Manifest,
    NoShardSet,
    ShardSet,
    Split,
    WrongCall,
    read_rows,
    verify_shard_set,
)
from alexshard.tools.packing import BuildSettings, MaxBad, TooManyBad, build, plan_build
from alexshard.tools.packing import output as output_module
from alexshard.tools.packing import shard as shard_module
from alexshard.tools.packing.output import PLAN_NAME, WORK_NAME
from alexshard.tools.packing.shard import pack_shard
from alexshard.tools.packing.workers import Job, pack_shards
from PIL import Image

from tests.conftest import alexshard
from tests.tools.drawn import (
    DEVKIT_IDS,
    SMALL,
    files_of,
    folders,
    ilsvrc,
    jpeg,
    named_images,
    pack,
    tar_bytes,
)

STORED = ImageFormat(64, "jpeg", 90, "4:2:0")
SIDES = {"cifar": 32}
CLASSES_DIFFER = (
    "classes: 3 -> 3, the first to differ: n00000002 (devkit id 3, words of n00000002) -> "
    "n00000002 (devkit id 1, words of n00000002)"
)


def packed_images(folder: Path, split: str) -> dict[str, tuple[bytes, int]]:
    """Original name to (image, label), read from the tars by tarfile alone."""
    members = {}
    for path in sorted(folder.glob(f"{split}-*.tar")):
        with tarfile.open(path) as archive:
            members |= {info.name: archive.extractfile(info).read() for info in archive}
    return {
        row.original: (members[f"{row.key}.jpg"], int(members[f"{row.key}.cls"]))
        for row in read_rows(folder / "samples.tsv", split=split)
    }


# --- real sources


@pytest.mark.parametrize("kind", ["2010", "2012", "full", "folder", "cifar"])
def test_every_real_source_is_packed_to_the_last_image(assembled, tmp_path, kind):
    source = assembled(kind)
    expected = json.loads((source / "EXPECTED.json").read_text(encoding="utf-8"))
    image = ImageFormat(SIDES.get(kind, 64), "jpeg", 90, "4:2:0")

    report = pack(source, tmp_path / "set", image=image, workers=2)

    assert report.refusals == []
    assert report.manifest.splits.keys() == expected["splits"].keys()
    for split, wanted in expected["splits"].items():
        entry, images = report.manifest.splits[split], packed_images(tmp_path / "set", split)
        per_class = Counter(expected["classes"][label] for _, label in images.values())
        assert (entry.samples, entry.patched, entry.quarantined, entry.found) == (
            wanted["images"],
            wanted["patched"],
            0,
            wanted["images"],
        )
        assert per_class == wanted["per_class"]
        if split in expected["labels"]:
            labels = {name: label for name, (_, label) in images.items()}
            assert labels == expected["labels"][split]
    assert verify_shard_set(tmp_path / "set") == []


def test_spoiled_originals_are_replaced_by_their_patches(assembled, tmp_path):
    source = assembled("2010")
    expected = json.loads((source / "EXPECTED.json").read_text(encoding="utf-8"))
    pack(source, tmp_path / "set", image=STORED, workers=2)
    with tarfile.open(source / "patch_images.tar") as archive:
        patches = {
            info.name.rpartition("/")[2]: archive.extractfile(info).read() for info in archive if info.isfile()
        }

    for patch in expected["patches"]:
        stored, _ = packed_images(tmp_path / "set", patch["split"])[patch["name"]]
        wanted = Image.open(io.BytesIO(patches[patch["name"]])).convert("RGB")
        short = min(wanted.size)
        left, top = ((length - short) // 2 for length in wanted.size)
        wanted = wanted.crop((left, top, left + short, top + short)).resize((64, 64), Image.Resampling.BOX)
        found = Image.open(io.BytesIO(stored))
        assert np.abs(np.asarray(wanted).astype(int) - np.asarray(found).astype(int)).mean() < 8, patch
    rows = {row.original: row for row in read_rows(tmp_path / "set" / "samples.tsv")}
    assert all("patched" in rows[patch["name"]].note for patch in expected["patches"])


HOSTILE_ENDS = {
    "truncated-outer": "is cut",
    "truncated-inner": "is cut",
    "member-overrun": "is cut",
    "not-a-mat": "is no table of synsets",
    "zero-classes": "holds no class",
}
HOSTILE_QUARANTINES = {
    "path-escape": "unsafe name",
    "absolute-path": "unsafe name",
    "symlink": "symbolic link",
    "device-node": "device",
    "duplicate-member": "other bytes",
    "huge-dimensions": "claims 65500×65500",
    "empty-member": "empty",
    "text-as-jpeg": "no image",
    "gzip-bomb": "inflates to more",
}


def test_every_hostile_case_is_known_here(assembled):
    cases = json.loads((assembled("hostile") / "EXPECTED.json").read_text(encoding="utf-8"))["cases"]

    assert cases.keys() == {*HOSTILE_ENDS, *HOSTILE_QUARANTINES, "bad-class"}


@pytest.mark.parametrize("max_bad", ["0.1%", "100%"])
@pytest.mark.parametrize("case", HOSTILE_ENDS)
def test_a_damaged_archive_ends_the_build_before_anything_is_written(assembled, tmp_path, case, max_bad):
    with pytest.raises(AlexshardError, match=HOSTILE_ENDS[case]) as caught:
        pack(assembled("hostile") / case, tmp_path / "set", max_bad=max_bad)

    assert caught.value.exit_code == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("max_bad", ["0.1%", "100%"])
@pytest.mark.parametrize("case", HOSTILE_QUARANTINES)
def test_a_hostile_image_is_quarantined_and_the_sound_ones_are_packed(assembled, tmp_path, case, max_bad):
    source = assembled("hostile") / case
    intact = json.loads((source.parent / "EXPECTED.json").read_text(encoding="utf-8"))["cases"][case]["intact"]
    before = files_of(source.parent)

    report = pack(source, tmp_path / "set", max_bad=max_bad)

    assert {split: entry.samples for split, entry in report.manifest.splits.items()} == intact
    assert report.manifest.splits["train"].found == intact["train"] + 1
    lines = (tmp_path / "set" / "quarantine.jsonl").read_text(encoding="ascii").splitlines()
    assert [HOSTILE_QUARANTINES[case] in json.loads(line)["reason"] for line in lines] == [True]
    assert [path.name for path in tmp_path.iterdir()] == ["set"]
    assert files_of(source.parent) == before


def test_a_class_of_bad_images_ends_the_build_or_is_quarantined_if_allowed(assembled, tmp_path):
    source = assembled("hostile") / "bad-class"

    with pytest.raises(TooManyBad, match=r"n03394916_0\.JPEG: empty"):
        pack(source, tmp_path / "strict")
    report = pack(source, tmp_path / "lenient", max_bad="100%")

    assert not finished_files(tmp_path / "strict")
    entry = report.manifest.splits["train"]
    assert (entry.found, entry.samples, entry.quarantined, len(report.refusals)) == (11, 8, 3, 3)
    assert report.manifest.num_classes == 3
    assert report.remarks == ["no training sample is left of 1 of the classes, first n03394916"]


def finished_files(folder: Path) -> list[str]:
    """What in a folder could be taken for a shard set: anything outside of the work folder."""
    return [path.name for path in folder.iterdir() if path.name != WORK_NAME] if folder.exists() else []


# --- the same bytes


def test_any_number_of_workers_gives_the_same_bytes(tmp_path):
    train = named_images(8)
    train["n00000002"][3] = ("n00000002_3.JPEG", b"text")
    source = ilsvrc(tmp_path / "source", train)

    sets = []
    for workers in (1, 3):
        pack(source, tmp_path / str(workers), samples_per_shard=3, workers=workers, max_bad="1")
        sets.append(files_of(tmp_path / str(workers)))

    assert len(sets[0]) > 20
    assert sets[0] == sets[1]


def test_extracted_and_archived_sources_give_the_same_shards(tmp_path):
    source = ilsvrc(tmp_path / "source")
    extracted = folders(
        tmp_path / "extracted",
        {f"train/{wnid}": dict(images) for wnid, images in named_images().items()}
        | {"val": {f"ILSVRC2012_val_{n:08d}.JPEG": jpeg(100 + n) for n in range(1, 5)}},
    )
    shutil.copy(source / "ILSVRC2012_devkit_t12.tar", extracted)
    pack(source, tmp_path / "a")
    pack(extracted, tmp_path / "b")

    same = [name for name in files_of(tmp_path / "a") if name not in ("manifest.json",)]

    assert {name: files_of(tmp_path / "a")[name] for name in same} == {
        name: files_of(tmp_path / "b")[name] for name in same
    }


def test_the_seed_changes_the_order_and_nothing_else(tmp_path):
    source = ilsvrc(tmp_path / "source")
    images = []
    for seed in (0, 1):
        pack(source, tmp_path / str(seed), seed=seed)
        images.append(packed_images(tmp_path / str(seed), "train"))

    assert images[0] == images[1]
    assert list(images[0]) != list(images[1])


# --- bad images


@pytest.mark.parametrize(
    ("text", "found", "allowed"),
    [
        ("0", 10**6, 0),
        ("3", 2, 3),
        ("0.1%", 1, 1),
        ("0.1%", 1000, 1),
        ("0.1%", 1001, 2),
        ("100%", 7, 7),
        ("0%", 9, 0),
    ],
)
def test_max_bad_is_a_count_or_a_percentage_rounded_up(text, found, allowed):
    assert MaxBad.parse(text).allowed(found) == allowed


@pytest.mark.parametrize(
    "text", ["", "-1", "1.5", "101%", "nan", "inf%", "many", "%", "1_0", "1e2", "٥", "1e99999999"]
)
def test_max_bad_that_is_neither_is_a_wrong_call(text):
    with pytest.raises(WrongCall):
        MaxBad.parse(text)


@pytest.mark.parametrize("workers", [1, 2])
def test_beyond_max_bad_there_is_no_set_but_a_list_of_reasons(tmp_path, workers):
    train = named_images()
    train["n00000001"][:3] = [(f"n00000001_{i}.JPEG", b"text") for i in range(3)]
    source = ilsvrc(tmp_path / "source", train)

    with pytest.raises(TooManyBad, match="of 16 at most 2 may be") as caught:
        pack(source, tmp_path / "set", samples_per_shard=3, workers=workers, max_bad="2")

    kept = tmp_path / "set" / WORK_NAME / "quarantine.jsonl"
    assert caught.value.where == str(kept)
    assert finished_files(tmp_path / "set") == []
    assert {json.loads(line)["name"] for line in kept.read_text().splitlines()} == {
        f"n00000001_{i}.JPEG" for i in range(3)
    }


def test_after_too_many_bad_images_the_same_output_can_be_built(tmp_path):
    train = named_images() | {"n00000003": [("n00000003_0.JPEG", jpeg(1)), ("n00000003_1.JPEG", b"")]}
    source = ilsvrc(tmp_path / "source", train)
    with pytest.raises(TooManyBad):
        pack(source, tmp_path / "set", max_bad="0")

    pack(source, tmp_path / "set", max_bad="1")

    assert verify_shard_set(tmp_path / "set") == []
    assert not (tmp_path / "set" / WORK_NAME).exists()


def test_shards_of_bad_images_alone_leave_no_gap_in_the_numbers(tmp_path):
    train = {
        wnid: [(name, data if i == 3 else b"") for i, (name, data) in enumerate(images)]
        for wnid, images in named_images().items()
    }
    source = ilsvrc(tmp_path / "source", train)

    report = pack(source, tmp_path / "set", samples_per_shard=1, max_bad="100%")

    entry = report.manifest.splits["train"]
    assert [shard.name for shard in entry.shards] == [f"train-{n:06d}.tar" for n in range(3)]
    assert (entry.found, entry.samples, entry.quarantined) == (12, 3, 9)
    assert verify_shard_set(tmp_path / "set") == []
    assert {row.original for row in read_rows(tmp_path / "set" / "samples.tsv", split="train")} == {
        f"{wnid}_3.JPEG" for wnid in DEVKIT_IDS
    }


def test_a_split_of_bad_images_alone_is_an_error(tmp_path):
    train = {wnid: [(name, b"") for name, _ in images] for wnid, images in named_images().items()}

    with pytest.raises(AlexshardError, match="all 12 images of train are bad"):
        pack(ilsvrc(tmp_path / "source", train), tmp_path / "set", max_bad="100%")

    assert not finished_files(tmp_path / "set")


def test_names_that_collide_after_sanitising_are_all_packed(tmp_path):
    names = ["a b.jpg", "a_b.jpg", "a;b.JPEG", "A b.jpg", "-.jpg", "_.jpg", "ゴ.jpg", "two\tlines\n.jpg"]
    source = folders(tmp_path / "source", {c: {n: jpeg(i) for i, n in enumerate(names)} for c in ("x", "y")})

    report = pack(source, tmp_path / "set")

    assert report.manifest.splits["train"].samples == 16
    originals = {row.original for row in read_rows(tmp_path / "set" / "samples.tsv")}
    assert originals == {f"{c}/{name}" for c in ("x", "y") for name in names}
    assert verify_shard_set(tmp_path / "set") == []


def test_unlabelled_samples_have_no_label_member(tmp_path):
    pack(ilsvrc(tmp_path / "source", truth=None), tmp_path / "set", unlabelled=True)

    with tarfile.open(tmp_path / "set" / "val-000000.tar") as archive:
        assert {name.rpartition(".")[2] for name in archive.getnames()} == {"jpg"}
    assert ShardSet.open(tmp_path / "set").index("val").label.tolist() == [-1] * 4
    assert not Manifest.load(tmp_path / "set").splits["val"].labelled


# --- the output folder


def test_a_complete_set_is_never_overwritten(tmp_path):
    source = ilsvrc(tmp_path / "source")
    pack(source, tmp_path / "set")
    before = files_of(tmp_path / "set")

    with pytest.raises(WrongCall, match="is a shard set already") as caught:
        pack(source, tmp_path / "set", seed=1, image=STORED)

    assert caught.value.what.splitlines()[1:] == ["    image.side: 32 -> 64", "    seed: 0 -> 1"]
    assert files_of(tmp_path / "set") == before


def test_a_complete_set_of_another_source_is_told_from_this_one_by_what_differs(tmp_path):
    images = named_images()
    pack(ilsvrc(tmp_path / "source", images), tmp_path / "set", samples_per_shard=20)
    fewer = images | {"n00000001": [("n00000001_9.JPEG", data) for _, data in images["n00000001"][:1]]}
    same_counts = images | {"n00000001": [(f"0-{name}", data) for name, data in images["n00000001"]]}

    for train, ids, difference in (
        (fewer, None, "images of train: 12 -> 9"),
        (images, {**DEVKIT_IDS, "n00000002": 1, "n00000003": 3}, CLASSES_DIFFER),
        (same_counts, None, "names, sizes, labels or places of the images"),
    ):
        shutil.rmtree(tmp_path / "other", ignore_errors=True)
        with pytest.raises(WrongCall) as caught:
            pack(ilsvrc(tmp_path / "other", train, ids=ids), tmp_path / "set", samples_per_shard=20)
        assert caught.value.what.splitlines()[1:] == [f"    {difference}"]


def test_all_differences_to_an_unfinished_build_are_named_settings_first_and_digests_last(tmp_path):
    source, out = ilsvrc(tmp_path / "source", {"n00000001": [("n00000001_1.JPEG", b"")]}, val=0), tmp_path / "set"
    with pytest.raises(TooManyBad):
        pack(source, out, max_bad="0")

    with pytest.raises(WrongCall) as caught:
        pack(ilsvrc(tmp_path / "other"), out, image=ImageFormat(48, "raw"), seed=1, exact=True)

    told = [line.split(":")[0].strip() for line in caught.value.what.splitlines()[1:]]
    assert told == [
        "splits",
        *("image.side", "image.encoding", "image.quality", "image.subsampling"),
        *("seed", "samples_per_shard.train", "decoding", "samples_per_shard.val"),
        *("classes", "images of train", "images of val"),
    ]


@pytest.mark.parametrize("name", ["thesis.tex", "train-000000.tar", ".build/notes.txt"])
def test_a_folder_with_other_things_is_left_alone(tmp_path, name):
    file = tmp_path / "set" / name
    file.parent.mkdir(parents=True)
    file.write_text("precious")

    with pytest.raises(WrongCall, match="holds other things"):
        pack(ilsvrc(tmp_path / "source"), tmp_path / "set")

    assert file.read_text() == "precious"


def test_a_set_beside_an_empty_work_folder_without_a_lock_may_be_anybodys(tmp_path):
    source, out = ilsvrc(tmp_path / "source"), tmp_path / "set"
    pack(source, out)
    (out / "manifest.json").unlink()
    (out / WORK_NAME).mkdir()
    before = files_of(out)

    for restart in (False, True):
        with pytest.raises(WrongCall, match=r"holds the files of a set without its manifest: SHA256SUMS"):
            build(
                plan_build(BuildSettings(source=source, out=out, image=SMALL, max_bad=MaxBad.parse("0"))),
                workers=1,
                on_progress=lambda *_: None,
                restart=restart,
            )

    assert files_of(out) == before


def test_a_set_that_lost_its_manifest_is_called_so_and_left_alone(tmp_path):
    source, out = ilsvrc(tmp_path / "source"), tmp_path / "set"
    pack(source, out)
    (out / "manifest.json").unlink()
    before = files_of(out)

    with pytest.raises(WrongCall, match=r"holds the files of a set without its manifest: SHA256SUMS") as caught:
        pack(source, out)

    assert "another folder" in caught.value.remedy
    assert files_of(out) == before


@pytest.mark.parametrize("above", [False, True])
def test_where_a_build_is_unfinished_readers_say_so(tmp_path, above):
    out = tmp_path / "shards" / "set"
    with pytest.raises(TooManyBad):
        pack(ilsvrc(tmp_path / "source", {"n00000001": [("n00000001_1.JPEG", b"")]}, val=0), out, max_bad="0")
    assert (out / WORK_NAME / PLAN_NAME).exists()

    for read in (ShardSet.open, verify_shard_set):
        with pytest.raises(NoShardSet, match=f"{out} holds an unfinished build") as caught:
            read(out.parent if above else out)
        assert "the command that began it continues it" in caught.value.remedy


def test_an_empty_work_folder_alone_is_what_a_build_leaves_that_was_killed_in_its_first_or_last_moment(tmp_path):
    source, out = ilsvrc(tmp_path / "source"), tmp_path / "set"
    (out / WORK_NAME).mkdir(parents=True)

    assert pack(source, out).manifest.splits["train"].samples == 12


def test_a_build_that_was_killed_is_started_afresh(tmp_path):
    source, out = ilsvrc(tmp_path / "source"), tmp_path / "set"
    pack(source, tmp_path / "whole")
    for name in (f"{WORK_NAME}/lock", f"{WORK_NAME}/train-000000.tar.part", "train-000007.tar"):
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        (out / name).write_bytes(b"half")

    pack(source, out)

    assert files_of(out) == files_of(tmp_path / "whole")


def test_two_builds_do_not_share_an_output(tmp_path):
    source, out = ilsvrc(tmp_path / "source"), tmp_path / "set"

    with output_module.locked_output(out, source), pytest.raises(WrongCall, match="another build is at work"):
        pack(source, out)


@pytest.mark.parametrize("inside", [".", "shards", "shards/deep"])
def test_an_output_inside_the_source_is_a_wrong_call(tmp_path, inside):
    source = ilsvrc(tmp_path / "source")

    with pytest.raises(WrongCall, match="lies inside the source"):
        pack(source, source / inside)


def test_a_disk_that_is_too_small_is_told_before_the_start(tmp_path, monkeypatch):
    monkeypatch.setattr(output_module, "free_bytes", lambda _: 1000)

    with pytest.raises(AlexshardError, match=r"has 1\.0 kB free, and the set needs about \d+\.\d kB"):
        pack(ilsvrc(tmp_path / "source"), tmp_path / "set")

    assert not (tmp_path / "set").exists()


def test_a_place_that_cannot_be_written_to_is_an_error(tmp_path):
    (tmp_path / "file").write_text("")

    with pytest.raises(AlexshardError, match="cannot be written: Not a directory"):
        pack(ilsvrc(tmp_path / "source"), tmp_path / "file" / "set")


def test_a_set_that_the_same_command_has_just_finished_elsewhere_is_complete(tmp_path, monkeypatch):
    source, out = ilsvrc(tmp_path / "source"), tmp_path / "set"
    plan = plan_build(BuildSettings(source=source, out=out, image=SMALL, max_bad=MaxBad.parse("0")))
    look = output_module.check_output

    def finish_after_the_first_look(*arguments):
        look(*arguments)
        monkeypatch.setattr(output_module, "check_output", look)
        pack(source, out)

    monkeypatch.setattr(output_module, "check_output", finish_after_the_first_look)
    report = build(plan, workers=1, on_progress=lambda *_: None)

    assert report.was_complete
    assert verify_shard_set(out) == []
    assert not (out / WORK_NAME).exists()


def test_a_lock_that_another_build_takes_away_is_made_again(tmp_path, monkeypatch):
    source, out = ilsvrc(tmp_path / "source"), tmp_path / "set"
    lock = fcntl.flock
    lost = []

    def lock_too_late(*arguments):
        if not lost:
            lost.append(out / WORK_NAME / "lock")
            lost[0].unlink()
        lock(*arguments)

    monkeypatch.setattr(fcntl, "flock", lock_too_late)
    with output_module.locked_output(out, source):
        assert (out / WORK_NAME / "lock").exists()

    assert lost


# --- a build that ends early


def test_a_signal_after_the_manifest_is_too_late_to_stop_anything(tmp_path, monkeypatch):
    discard = output_module.Output.discard_files

    def interrupted(output, chosen):
        if (output.folder / "manifest.json").exists():
            os.kill(os.getpid(), signal.SIGINT)
        discard(output, chosen)

    monkeypatch.setattr(output_module.Output, "discard_files", interrupted)

    pack(ilsvrc(tmp_path / "source"), tmp_path / "set")

    assert verify_shard_set(tmp_path / "set") == []
    assert not (tmp_path / "set" / WORK_NAME).exists()


FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("part", ["finish.finish_shard_set", "resume.sync_folder"])
def test_a_disk_that_is_full_at_the_last_moment_is_told_in_words_and_the_same_call_completes(
    tmp_path, monkeypatch, part
):
    def full(*_arguments, **_options):
        raise FULL

    source = ilsvrc(tmp_path / "source")
    with (
        monkeypatch.context() as patch,
        pytest.raises(AlexshardError, match="set cannot be written: No space left"),
    ):
        patch.setattr(f"alexshard.tools.packing.{part}", full)
        pack(source, tmp_path / "set")
    assert not (tmp_path / "set" / "manifest.json").exists()

    assert pack(source, tmp_path / "set").shards_kept == 2
    pack(source, tmp_path / "undisturbed")
    assert files_of(tmp_path / "set") == files_of(tmp_path / "undisturbed")


def pack_here(source: Path, folder: Path, **settings: Any) -> None:
    """Pack the shards of a source by this very process."""
    folder.mkdir()
    plan = plan_build(BuildSettings(source=source, out=folder / "set", max_bad=MaxBad.parse("0"), **settings))
    for split in plan.splits.values():
        for number in range(split.num_shards):
            pack_shard(
                split.shard(number),
                plan.listing.containers,
                plan.settings.image,
                folder,
                on_image=lambda _: None,
            )


def test_a_shard_that_is_larger_than_memory_allows_is_packed_to_the_same_bytes(tmp_path, monkeypatch):
    source = ilsvrc(tmp_path / "source")
    pack_here(source, tmp_path / "in memory", image=SMALL)

    monkeypatch.setattr(shard_module, "SPOOL_BYTES", 1000)
    pack_here(source, tmp_path / "on disk", image=SMALL)

    in_memory = files_of(tmp_path / "in memory")
    assert len(in_memory) > 5
    assert files_of(tmp_path / "on disk") == in_memory


@pytest.mark.parametrize("images", [200, 800])
def test_memory_does_not_grow_with_the_shard(tmp_path, monkeypatch, images):
    monkeypatch.setattr(shard_module, "SPOOL_BYTES", 100_000)
    raw = ImageFormat(64, "raw")  # 12 kB each
    source = folders(tmp_path / "source", {"cat": {f"{i}.jpg": jpeg(i % 5) for i in range(images)}})
    pack_here(source, tmp_path / "warm", image=raw, samples_per_shard=images)

    tracemalloc.start()
    pack_here(source, tmp_path / "set", image=raw, samples_per_shard=images)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()

    assert peak < 3e6 + images * 2000  # of the images alone there are 12,288 bytes each


def test_a_large_shard_asks_for_room_for_what_waits_to_be_written(tmp_path):
    source = folders(tmp_path / "source", {"cat": {f"{i}.jpg": jpeg(i) for i in range(4)}})
    settings = BuildSettings(
        source=source, out=tmp_path / "set", image=ImageFormat(8192, "raw"), max_bad=MaxBad.parse("0")
    )
    plan = plan_build(settings)

    assert plan.needed_bytes(workers=4) > 2 * plan.split_bytes(Split.TRAIN)


def test_bad_pictures_and_bad_names_of_a_nested_archive_have_the_same_source(tmp_path):
    train = named_images()
    train["n00000002"] += [("n00000002_8.JPEG", b"text"), ("../n00000002_9.JPEG", jpeg(1))]

    report = pack(ilsvrc(tmp_path / "source", train), tmp_path / "set", max_bad="2")

    assert {refusal.name: refusal.source for refusal in report.refusals} == dict.fromkeys(
        ["n00000002_8.JPEG", "../n00000002_9.JPEG"], "ILSVRC2012_img_train.tar/n00000002.tar"
    )


def test_images_of_one_name_in_two_classes_do_not_depend_on_the_order_of_the_archive(tmp_path):
    train = {wnid: [("image.JPEG", data) for _, data in images[:1]] for wnid, images in named_images().items()}
    for name, order in (("a", train), ("b", dict(reversed(train.items())))):
        pack(ilsvrc(tmp_path / name, order), tmp_path / f"set-{name}")

    a, b = (files_of(tmp_path / f"set-{name}") for name in "ab")
    assert a["train-000000.tar"] == b["train-000000.tar"]
    assert a["samples.tsv"] == b["samples.tsv"]


def test_a_source_that_changes_after_it_was_listed_ends_the_build(tmp_path):
    source, out = ilsvrc(tmp_path / "source"), tmp_path / "set"
    settings = BuildSettings(source=source, out=out, image=SMALL, max_bad=MaxBad.parse("100%"))
    plan = plan_build(settings)
    (source / "ILSVRC2012_img_train.tar").write_bytes(tar_bytes([("other", bytes(10**6))]))

    with pytest.raises(AlexshardError, match="changed after it was listed"):
        build(plan, workers=1, on_progress=lambda *_: None)

    assert finished_files(out) == []


class Stop(BaseException):
    """What a signal raises in the main thread."""


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("after", [1, 5, 16])
def test_a_build_that_is_stopped_leaves_no_set_and_no_worker(tmp_path, workers, after):
    source, out = ilsvrc(tmp_path / "source"), tmp_path / "deep" / "set"
    settings = BuildSettings(source=source, out=out, image=SMALL, max_bad=MaxBad.parse("0"), samples_per_shard=2)
    looked_at = 0

    def stop(images: int, bad: int) -> None:
        nonlocal looked_at
        looked_at += images
        if looked_at >= after:
            raise Stop

    with pytest.raises(Stop):
        build(plan_build(settings), workers=workers, on_progress=stop)

    assert finished_files(out) == []
    assert not list(out.rglob("*.part*"))
    assert multiprocessing.active_children() == []


def test_a_worker_that_is_killed_ends_the_build_in_words(tmp_path):
    source, out = ilsvrc(tmp_path / "source", named_images(30)), tmp_path / "set"
    settings = BuildSettings(source=source, out=out, image=SMALL, max_bad=MaxBad.parse("0"), samples_per_shard=1)

    def kill(images: int, bad: int) -> None:
        for child in multiprocessing.active_children():
            if child.is_alive() and child.pid is not None:
                os.kill(child.pid, signal.SIGKILL)

    with pytest.raises(AlexshardError, match=r"a worker died \(killed by SIGKILL\)") as caught:
        build(plan_build(settings), workers=2, on_progress=kill)

    assert "-j" in caught.value.remedy
    assert finished_files(out) == []


@pytest.mark.parametrize(
    ("image", "what", "why", "remedy"),
    [
        pytest.param(
            ImageFormat(32, "jpeg", 90, "1:2:3"), "a worker failed: ", "in encoded\n", "report", id="unforeseen"
        ),
        pytest.param(ImageFormat(10_000_000, "raw"), "memory ran out", "may be sound", "-j", id="no memory"),
    ],
)
def test_whatever_ends_a_worker_is_told_with_its_shard_and_image(tmp_path, image, what, why, remedy):
    settings = BuildSettings(
        source=ilsvrc(tmp_path / "source"), out=tmp_path / "set", image=SMALL, max_bad=MaxBad.parse("0")
    )
    plan = plan_build(settings)
    job = Job(plan.listing.containers, image, tmp_path)
    shards = iter([plan.splits[Split.TRAIN].shard(0)])

    with pytest.raises(AlexshardError, match=what) as caught:
        pack_shards(shards, job, workers=1, on_progress=lambda *_: None, on_shard=lambda _: None)

    assert (
        "train-000000.tar, image n00000003_0.JPEG of ILSVRC2012_img_train.tar/n00000003.tar (1 of 12), process "
    ) in caught.value.where
    assert why in caught.value.why
    assert remedy in caught.value.remedy


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_the_command_with_its_code_and_no_set(tmp_path, number, code):
    source = ilsvrc(tmp_path / "source", named_images(150))
    command = alexshard(
        "build", source, "--out", tmp_path / "set", "--size", 32, "--samples-per-shard", 4, "-j", 2
    )
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stderr=pipe, stdout=pipe, text=True, start_new_session=True) as process:
        while not list((tmp_path / "set").glob(f"{WORK_NAME}/train-*.json")):
            assert process.poll() is None
        # Ctrl-C in a terminal reaches the workers too.
        (os.killpg if number == signal.SIGINT else os.kill)(process.pid, number)
        out, err = process.communicate()

    assert process.returncode == code, err
    assert "Traceback" not in err
    assert out == ""
    assert finished_files(tmp_path / "set") == []


def test_after_the_coordinator_is_killed_its_workers_end_and_the_next_build_is_whole(tmp_path):
    source = ilsvrc(tmp_path / "source", named_images(150))
    options = ("--size", 32, "--samples-per-shard", 4, "-j", 2)
    command = alexshard("build", source, "--out", tmp_path / "set", *options)
    with subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        while not list((tmp_path / "set").glob(f"{WORK_NAME}/train-*.json")):
            assert process.poll() is None
        process.kill()
        process.communicate()  # returns when the last process that holds the pipes has ended: the workers too

    assert finished_files(tmp_path / "set") == []
    for name in ("set", "undisturbed"):
        subprocess.run(
            alexshard("build", source, "--out", tmp_path / name, *options), check=True, capture_output=True
        )
    assert files_of(tmp_path / "set") == files_of(tmp_path / "undisturbed")


# --- the command


def command(*arguments: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(alexshard("build", *arguments), capture_output=True, text=True, cwd=cwd, check=False)


def test_the_command_writes_to_shards_and_ends_with_the_next_command(tmp_path):
    ilsvrc(tmp_path / "data" / "tiny set")

    done = command(tmp_path / "data" / "tiny set", "--size", 32, cwd=tmp_path)

    assert (done.returncode, done.stdout.splitlines()[-1]) == (0, "  alextrain run --shards 'shards/tiny set'")
    assert verify_shard_set(tmp_path / "shards" / "tiny set") == []


def test_the_default_output_is_called_what_the_person_typed(tmp_path):
    ilsvrc(tmp_path / "downloaded-2024")
    (tmp_path / "current").symlink_to("downloaded-2024")

    done = command("current/", "--size", 32, cwd=tmp_path)

    assert done.returncode == 0
    assert verify_shard_set(tmp_path / "shards" / "current") == []


def test_names_from_the_archive_cannot_act_on_the_terminal(tmp_path):
    train = named_images()
    train["n00000001"][0] = ("\x1b[2Jcleared.JPEG", b"text")
    source = ilsvrc(tmp_path / "source", train)

    refused = command(source, "--size", 32, "--max-bad", "0", cwd=tmp_path)
    packed = command(source, "--size", 32, "--max-bad", "1", cwd=tmp_path)

    assert (refused.returncode, packed.returncode) == (1, 0)
    assert "\x1b" not in refused.stderr + packed.stdout
    assert r"\x1b[2Jcleared.JPEG" in refused.stderr
    assert r"\x1b[2Jcleared.JPEG" in packed.stdout


def test_a_dry_run_prints_the_plan_and_writes_nothing(tmp_path):
    source = ilsvrc(tmp_path / "source")
    before = files_of(tmp_path)

    done = command(source, "--dry-run", "--seed", "1", cwd=tmp_path)

    assert done.returncode == 0
    assert done.stdout.endswith(f"build {source} --seed 1\n")
    assert done.stdout.splitlines()[-2] == "next:"
    assert "at most 1 of 16 may be left out (--max-bad 0.1%)" in done.stdout
    assert done.stdout.splitlines()[1].split()[:2] == ["train", "12"]
    assert "ILSVRC2012 archives, 3 classes" in done.stdout
    assert files_of(tmp_path) == before


@pytest.mark.parametrize(
    ("arguments", "code", "what"),
    [
        (("nowhere",), 2, "error: SOURCE nowhere does not exist"),
        (("source", "--splits", "train,dev"), 2, "error: --splits: 'dev' is none of train, val, test"),
        (("source", "--max-bad", "lots"), 2, "error: --max-bad 'lots' is neither"),
        (("source", "--format", "raw", "--quality", "80"), 2, "error: --quality is of JPEG"),
        (("source", "--quality", "0"), 2, "Invalid value for '--quality'"),
        (("source", "--samples-per-shard", "16000001"), 2, "is not in the range 1<=x<=16000000"),
        (("source", "--statistics-from", "source"), 2, "error: "),
        (("empty",), 2, "error: empty holds nothing that is known here"),
    ],
)
def test_wrong_calls_exit_2_in_words(tmp_path, arguments, code, what):
    ilsvrc(tmp_path / "source")
    (tmp_path / "empty").mkdir()

    done = command(*arguments, cwd=tmp_path)

    assert (done.returncode, done.stdout) == (code, "")
    assert what in done.stderr
    assert "Traceback" not in done.stderr


def test_packing_imports_neither_torch_nor_dali(tmp_path):
    source = ilsvrc(tmp_path / "source")
    program = (
        "import sys\n"
        "from alexshard.tools.cli_alexshard import main\n"
        f"main(['build', {str(source)!r}, '--out', {str(tmp_path / 'set')!r}, '--size', '32', '-j', '1'],"
        " standalone_mode=False)\n"
        "print(sorted({name.partition('.')[0] for name in sys.modules} & {'torch', 'nvidia', 'webdataset'}))\n"
    )

    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)

    assert done.stdout.splitlines()[-1] == "[]"
    assert (tmp_path / "set" / "manifest.json").exists()
