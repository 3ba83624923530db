"""What others' tools find in a packed set: webdataset, DALI's wds2idx, sha256sum and GNU tar."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import webdataset

from tests.conftest import alexshard, run

# webdataset 1.0.2 leaves the files that it reads to the garbage collector.
pytestmark = [
    pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning"),
    pytest.mark.filterwarnings("ignore:Exception ignored in. <_io.FileIO:pytest.PytestUnraisableExceptionWarning"),
]

Packed = tuple[Path, dict[str, Any]]  # shard set, EXPECTED.json of its source


@pytest.fixture(scope="module", params=["drawn", "2010", "2012", "folder", "cifar"])
def packed(request: pytest.FixtureRequest, make_desk: Callable[[str], Any]) -> Packed:
    """The drawn sample (in anyone's clone) and real images in each layout, built by the command."""
    desk = make_desk(request.param)
    if request.param == "drawn":
        desk.type("alexshard sample source --train 120 --val 30 --test 20")
        source = desk.folder / "source"
    else:
        source = request.getfixturevalue("assembled")(request.param)
    size = "--size 32" if request.param == "cifar" else ""
    desk.type(f"alexshard build '{source}' --out set --samples-per-shard 300 {size}")
    return desk.folder / "set", json.loads((source / "EXPECTED.json").read_text(encoding="utf-8"))


def rows(folder: Path, split: str) -> Iterator[dict[str, str]]:
    with (folder / "samples.tsv").open(encoding="utf-8", newline="") as file:
        reader = csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE)
        yield from (row for row in reader if row["split"] == split)


def true_label(expected: dict[str, Any], row: dict[str, str]) -> int:
    """The label that the source gives an original: by its list, or in train by its class in the name."""
    if row["split"] != "train":
        listed = expected["labels"][row["split"]]
        found = [
            listed[name]
            for name in (row["original"], "/".join(Path(row["original"]).parts[-2:]))
            if name in listed
        ]
        return int(found[0])
    parts = Path(row["original"]).parts
    named = parts[-2] if len(parts) > 1 else parts[-1].split("_")[0]
    return int(expected["classes"].index(named))


def test_webdataset_reads_every_sample_with_its_right_label_and_size(packed):
    folder, expected = packed
    told = json.loads(run(*alexshard("info", folder, "--json")))
    side = told["image"]["side"]
    for split, content in expected["splits"].items():
        pattern = f"{folder}/{told['splits'][split]['files']}"
        dataset = webdataset.WebDataset(pattern, shardshuffle=False)
        read = [(image.size, label) for image, label in dataset.decode("pil").to_tuple("jpg", "cls")]

        assert len(read) == content["images"]
        assert {size for size, _ in read} == {(side, side)}
        assert [label for _, label in read] == [true_label(expected, row) for row in rows(folder, split)]


def test_every_original_is_packed_once(packed):
    folder, expected = packed
    for split, content in expected["splits"].items():
        originals = [row["original"] for row in rows(folder, split)]

        assert len(set(originals)) == len(originals) == content["images"]
        assert sum("patched" in row["note"] for row in rows(folder, split)) == content["patched"]


def test_the_patched_samples_are_those_that_the_patch_archive_names(packed):
    folder, expected = packed
    noted = {
        (split, Path(row["original"]).name)
        for split in expected["splits"]
        for row in rows(folder, split)
        if "patched" in row["note"]
    }

    assert noted == {(patch["split"], patch["name"]) for patch in expected["patches"]}


def test_dalis_wds2idx_gives_the_offsets_and_sizes_of_our_indexes(packed, tmp_path):
    folder, _ = packed
    ours = sorted(folder.glob("*.idx"))
    assert ours
    for index in ours:
        theirs = tmp_path / index.name
        wds2idx = Path(sys.executable).parent / "wds2idx"
        subprocess.run([wds2idx, index.with_suffix(".tar"), theirs], check=True, capture_output=True)

        assert positions(index) == positions(theirs)


def positions(index: Path) -> list[list[tuple[str, int, int]]]:
    """Per sample, (extension, offset, size) of each member."""
    version, *lines = index.read_text(encoding="utf-8").splitlines()
    assert version.split()[0] == "v1.2"
    assert int(version.split()[1]) == len(lines)
    words = [line.split() for line in lines]
    return [[(line[i], int(line[i + 1]), int(line[i + 2])) for i in range(0, len(line), 4)] for line in words]


def test_sha256sum_agrees_and_covers_every_file_but_the_manifest(packed):
    folder, _ = packed
    done = subprocess.run(
        ["sha256sum", "--check", "--strict", "SHA256SUMS"], cwd=folder, capture_output=True, text=True, check=False
    )

    assert done.returncode == 0, done.stdout + done.stderr
    checked = {line.removesuffix(": OK") for line in done.stdout.splitlines()}
    assert checked == {path.name for path in folder.iterdir()} - {"SHA256SUMS", "manifest.json"}


def test_gnu_tar_lists_an_image_and_its_label_by_turns(packed):
    folder, _ = packed
    for path in sorted(folder.glob("*.tar")):
        listed = subprocess.run(
            ["tar", "tf", path], check=True, capture_output=True, text=True
        ).stdout.splitlines()
        images, labels = listed[::2], listed[1::2]

        assert images
        assert [name.removesuffix(".jpg") for name in images] == [name.removesuffix(".cls") for name in labels]
        assert all(name.endswith(".jpg") for name in images)
        assert all(name.endswith(".cls") for name in labels)


def test_our_own_deep_verification_agrees(packed):
    folder, expected = packed
    told = json.loads(run(*alexshard("verify", folder, "--deep", "--json")))

    assert told["sound"]
    assert told["deep"]
    assert told["samples"] == sum(split["images"] for split in expected["splits"].values())
