from __future__ import annotations

import hashlib
import json
import re
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
from alexshard.shards import (
    AlexshardError,
    BadManifest,
    CorruptShardSet,
    Manifest,
    NoShardSet,
    NoSuchSplit,
    ShardFiles,
    ShardSet,
    read_rows,
)

from .conftest import SIDE, Tiny, early_set


def test_a_set_gives_back_the_bytes_and_labels_that_went_in(tiny: Tiny) -> None:
    shard_set = ShardSet.open(tiny.path)
    for split, samples in tiny.samples.items():
        index = shard_set.index(split)
        with ShardFiles(index, shard_set.shelf) as images:
            read = [(key, int(index.label[i]), bytes(images.bytes_of(i))) for i, key in enumerate(index.keys)]

        assert [(sample.key, sample.label, sample.image) for sample in samples] == read


def test_plain_tarfile_reads_a_shard_in_the_order_of_its_index(tiny: Tiny) -> None:
    with tarfile.open(tiny.path / "train-000000.tar") as archive:
        members = [(info.name, archive.extractfile(info).read()) for info in archive]  # type: ignore[union-attr]

    expected = []
    for sample in tiny.samples["train"][:4]:
        expected += [(f"{sample.key}.ppm", sample.image), (f"{sample.key}.cls", str(sample.label).encode())]
    assert members == expected


def test_gnu_tar_finds_nothing_to_complain_of(tiny: Tiny) -> None:
    done = subprocess.run(
        ["tar", "--list", "--file", tiny.path / "train-000001.tar"], capture_output=True, text=True, check=True
    )

    assert (len(done.stdout.splitlines()), done.stderr) == (6, "")


def test_the_index_is_what_dalis_own_tool_writes(tiny: Tiny, tmp_path: Path) -> None:
    theirs = tmp_path / "theirs.idx"
    shard = tiny.path / "train-000000.tar"
    code = "import sys, wds2idx; sys.argv = ['wds2idx', *sys.argv[1:]]; wds2idx.main()"
    pytest.importorskip("wds2idx", reason="DALI is not installed")
    subprocess.run([sys.executable, "-c", code, shard, theirs], check=True, capture_output=True)

    assert theirs.read_text() == (tiny.path / "train-000000.idx").read_text()


def test_a_folder_that_holds_one_set_stands_for_it(tiny: Tiny) -> None:
    assert ShardSet.open(tiny.path.parent).path == tiny.path


def test_a_folder_that_holds_two_sets_lists_them_and_is_a_wrong_call(tiny: Tiny, tmp_path: Path) -> None:
    for name in ("one", "two"):
        shutil.copytree(tiny.path, tmp_path / name)
    with pytest.raises(NoShardSet, match=r"holds 2 shard sets; say which:\n.*one\n.*two") as caught:
        ShardSet.open(tmp_path)

    assert caught.value.exit_code == 2


@pytest.mark.parametrize("name", ["", "nowhere"])
def test_where_there_is_no_set_the_error_says_how_to_make_one(tmp_path: Path, name: str) -> None:
    with pytest.raises(NoShardSet, match="alexshard build SOURCE") as caught:
        ShardSet.open(tmp_path / name)

    assert caught.value.exit_code == 2


def test_a_set_without_its_manifest_is_called_so(tiny: Tiny, tmp_path: Path) -> None:
    copy = tmp_path / "set"
    shutil.copytree(tiny.path, copy)
    (copy / "manifest.json").unlink()

    for path in (copy, tmp_path):
        with pytest.raises(NoShardSet, match="the files of a shard set without its manifest") as caught:
            ShardSet.open(path)
        assert str(copy) in caught.value.what


@pytest.mark.parametrize("harm", ["a flipped bit", "a shard cut short"])
def test_what_is_damaged_is_mended_by_a_command_that_can_be_typed(tiny: Tiny, tmp_path: Path, harm: str) -> None:
    copy = tmp_path / "two words"
    shutil.copytree(tiny.path, copy)
    path = copy / ("manifest.json" if harm == "a flipped bit" else "train-000000.tar")
    data = bytearray(path.read_bytes())
    data[100] ^= 1
    path.write_bytes(data if harm == "a flipped bit" else data[:-1])

    with pytest.raises(AlexshardError) as caught:
        ShardSet.open(copy)

    assert f"alexshard verify '{copy}' --repair SOURCE" in caught.value.remedy


def test_an_unknown_split_is_refused_naming_those_there_are(tiny: Tiny) -> None:
    with pytest.raises(NoSuchSplit, match="no split 'test'; it has train, val"):
        ShardSet.open(tiny.path).index("test")


def test_a_shard_of_another_size_is_found_on_opening(tiny: Tiny, tmp_path: Path) -> None:
    copy = tmp_path / "set"
    shutil.copytree(tiny.path, copy)
    with (copy / "train-000001.tar").open("ab") as file:
        file.write(b"\0")

    with pytest.raises(CorruptShardSet, match=r"train-000001\.tar has 7,169 bytes, the manifest says 7,168"):
        ShardSet.open(copy)


def test_an_index_of_another_shard_is_refused(tiny: Tiny, tmp_path: Path) -> None:
    copy = tmp_path / "set"
    shutil.copytree(tiny.path, copy)
    shutil.copy(copy / "train-000001.idx", copy / "train-000000.idx")

    with pytest.raises(CorruptShardSet, match="has 3 samples, the manifest says 4"):
        ShardSet.open(copy).index("train")


def test_a_manifest_from_the_future_is_refused_by_its_version(tiny: Tiny, tmp_path: Path) -> None:
    fields = json.loads((tiny.path / "manifest.json").read_text())
    (tmp_path / "manifest.json").write_text(json.dumps(fields | {"version": 99}))

    with pytest.raises(BadManifest, match="format version 99, this alexshard reads version 1"):
        Manifest.load(tmp_path)


@pytest.mark.parametrize(
    ("was", "is_now"),
    [
        ('"side": 8', '"side": "8"'),
        ('"samples": 7', '"samples": true'),
        ('"labelled": true', '"labelled": 1'),
        ('"synset": "a"', '"synset": null'),
        ('"classes": [', '"classes": 5, "more": ['),
    ],
)
def test_a_sealed_manifest_of_wrong_kinds_is_refused(tiny: Tiny, tmp_path: Path, was: str, is_now: str) -> None:
    text = (tiny.path / "manifest.json").read_text(encoding="utf-8")
    digest = re.search(r'"digest": "(\w{64})"', text)
    assert digest is not None
    assert was in text
    blank = text.replace(was, is_now, 1).replace(digest[1], "0" * 64)
    sealed = blank.replace("0" * 64, hashlib.sha256(blank.encode()).hexdigest())
    (tmp_path / "manifest.json").write_text(sealed, encoding="utf-8")

    with pytest.raises(BadManifest, match="lacks a field or has one of a wrong kind"):
        Manifest.load(tmp_path)


@pytest.mark.parametrize("text", ["[" * 200_000, "9" * 5000], ids=["nested", "long"])
def test_a_manifest_nested_without_end_or_of_a_number_too_long_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "manifest.json").write_text(text)

    with pytest.raises(BadManifest, match="is no JSON"):
        Manifest.load(tmp_path)


@pytest.mark.parametrize(
    ("was", "is_now"),
    [
        ("ppm 512 ", "ppm 99999999999999999999 "),
        ("ppm 512 ", "ppm -512 "),
        ("ppm 512 ", "ppm 9223372036854775807 "),
        (" 203 ", " -203 "),
        (" 203 ", " x "),
        ("v1.2 4", "v1.2 " + "4" * 5000),
        ("v1.2 4", "v1.1 4"),
    ],
)
def test_an_index_that_points_nowhere_is_refused(tiny: Tiny, tmp_path: Path, was: str, is_now: str) -> None:
    copy = tmp_path / "set"
    shutil.copytree(tiny.path, copy)
    text = (copy / "train-000000.idx").read_text()
    assert was in text
    (copy / "train-000000.idx").write_text(text.replace(was, is_now, 1))

    with pytest.raises(CorruptShardSet, match=r"the index train-000000\.idx"):
        ShardSet.open(copy).index("train")


@pytest.mark.parametrize("label", ["9" * 20, "7", "-1", "x"])
def test_a_label_that_is_none_is_refused(tiny: Tiny, tmp_path: Path, label: str) -> None:
    copy = tmp_path / "set"
    shutil.copytree(tiny.path, copy)
    text = (copy / "samples.tsv").read_text()
    (copy / "samples.tsv").write_text(text.replace("train_0_0\t0\t", f"train_0_0\t{label}\t"))

    with pytest.raises(CorruptShardSet, match=r"label"):
        ShardSet.open(copy).index("train")


def test_an_altered_manifest_is_refused(tiny: Tiny, tmp_path: Path) -> None:
    text = (tiny.path / "manifest.json").read_text(encoding="utf-8")
    (tmp_path / "manifest.json").write_text(text.replace('"seed": 0', '"seed": 1'), encoding="utf-8")

    with pytest.raises(BadManifest, match="altered after it was written"):
        Manifest.load(tmp_path)


def test_the_manifest_survives_its_text(tiny: Tiny) -> None:
    manifest = Manifest.load(tiny.path)

    assert Manifest.parse(manifest.to_json()) == manifest
    assert manifest.sealed() == manifest


def test_original_names_survive_tabs_newlines_and_foreign_bytes(tmp_path: Path) -> None:
    from alexshard.shards import SampleRow
    from alexshard.shards.rows import rows_text

    names = ["a\tb", "c\nd\r", "back\\slash\\n", "caf\udce9", "e\u2028f\x85", "\\"]
    rows = [SampleRow(f"k{i}", -1, "val", "val-000000.tar", name, "", i) for i, name in enumerate(names)]
    (tmp_path / "samples.tsv").write_bytes(rows_text(rows).encode("utf-8", "surrogateescape"))

    assert list(read_rows(tmp_path / "samples.tsv")) == rows


def test_the_mean_image_is_float32_of_the_sets_side(tiny: Tiny) -> None:
    mean = ShardSet.open(tiny.path).mean_image()

    assert (mean.shape, mean.dtype) == ((SIDE, SIDE, 3), np.float32)


def test_importing_the_format_needs_numpy_at_most() -> None:
    code = (
        "import sys; before = set(sys.modules); import alexshard.shards\n"
        "new = {name.partition('.')[0] for name in set(sys.modules) - before}\n"
        "print(*sorted(new - set(sys.stdlib_module_names)))"
    )
    done = subprocess.run([sys.executable, "-I", "-c", code], capture_output=True, text=True, check=True)

    assert done.stdout.split() == ["alexshard", "numpy"]


def test_a_set_of_an_early_build_whose_manifest_names_no_files_is_read(tiny: Tiny, tmp_path: Path) -> None:
    early = early_set(tiny.path, tmp_path / "early")

    assert ShardSet.open(early).manifest.files == {}
    assert len(ShardSet.open(early).index("train")) == 7


@pytest.mark.parametrize(
    ("name", "was", "is_now", "told"),
    [
        ("samples.tsv", "train_0_1\t", "train_0_9\t", "list other samples of train, or another order"),
        ("samples.tsv", "train_0_1\t1\t", "train_0_1\t5\t", "has a label outside 0..2"),
        ("mean_image.npy", "8, 8, 3", "8, 3, 8", r"is float32 \(8, 3, 8\), not float32 \(8, 8, 3\)"),
        ("mean_image.npy", "NUMPY", "NUMPX", "mean_image.npy cannot be read: "),
    ],
)
def test_what_no_digest_tells_of_a_set_of_an_early_build_its_contents_tell(
    tiny: Tiny, tmp_path: Path, name: str, was: str, is_now: str, told: str
) -> None:
    early = early_set(tiny.path, tmp_path / "early")
    data = (early / name).read_bytes()
    assert was.encode() in data
    (early / name).write_bytes(data.replace(was.encode(), is_now.encode(), 1))
    shard_set = ShardSet.open(early)

    with pytest.raises(CorruptShardSet, match=told):
        shard_set.index("train") if name == "samples.tsv" else shard_set.mean_image()
