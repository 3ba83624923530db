"""`alexshard sample` draws a set that is ILSVRC2010 in everything but the pictures."""

from __future__ import annotations

import errno
import gzip
import hashlib
import io
import json
import os
import signal
import subprocess
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from alexshard.shards import AlexshardError, WrongCall
from alexshard.tools import sample_archive
from alexshard.tools.sample_archive import EXPECTED_NAME, draw_sample, plan_sample
from alexshard.tools.sample_images import kinds, picture
from PIL import Image
from scipy.io import loadmat

from tests.conftest import alexshard, run

COUNTS = {"train": 60, "val": 20, "test": 20}


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    dest = tmp_path_factory.mktemp("sample") / "drawn"
    draw_sample(dest, COUNTS, seed=3)
    return dest


@pytest.fixture(scope="module")
def expected(drawn: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((drawn / EXPECTED_NAME).read_text(encoding="utf-8"))
    return content


@pytest.fixture(scope="module")
def members(drawn: Path) -> dict[str, dict[str, bytes]]:
    """{split: {file name: bytes}} as the archives hold them, in their order."""
    found: dict[str, dict[str, bytes]] = {"train": {}, "val": {}, "test": {}}
    with tarfile.open(drawn / "ILSVRC2010_images_train.tar") as outer:
        for inner in outer:
            with tarfile.open(fileobj=outer.extractfile(inner)) as archive:
                for name, data in files(archive).items():
                    assert name.startswith(inner.name.removesuffix(".tar") + "_")
                    found["train"][name] = data
    for split in ("val", "test"):
        with tarfile.open(drawn / f"ILSVRC2010_images_{split}.tar") as archive:
            found[split] = {name.removeprefix(f"{split}/"): data for name, data in files(archive).items()}
    return found


def files(archive: tarfile.TarFile) -> dict[str, bytes]:
    return {info.name: archive.extractfile(info).read() for info in archive if info.isfile()}  # type: ignore[union-attr]


def decoded(data: bytes) -> Image.Image:
    image = Image.open(io.BytesIO(data))
    image.load()
    return image


def odd(expected: dict[str, Any], members: dict[str, dict[str, bytes]], name: str) -> bytes:
    at = expected["oddities"][name]
    return members[at["split"]][at["name"]]


def test_the_folder_holds_what_ilsvrc2010_has(drawn):
    assert {path.name for path in drawn.iterdir()} == {
        "ILSVRC2010_images_train.tar",
        "ILSVRC2010_images_val.tar",
        "ILSVRC2010_images_test.tar",
        "patch_images.tar",
        "ILSVRC2010_devkit-1.0.tar.gz",
        "ILSVRC2010_test_ground_truth.txt",
        EXPECTED_NAME,
    }


def test_equal_arguments_give_equal_bytes_and_another_seed_others(drawn, tmp_path):
    draw_sample(tmp_path / "again", COUNTS, seed=3)
    draw_sample(tmp_path / "other", COUNTS, seed=4)

    assert digests(tmp_path / "again") == digests(drawn)
    assert not set(digests(tmp_path / "other").values()) & set(digests(drawn).values())


def digests(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}


def test_the_archives_hold_the_promised_number_of_images_of_each_class(expected, members):
    assert {split: len(found) for split, found in members.items()} == COUNTS
    assert {split: content["images"] for split, content in expected["splits"].items()} == COUNTS
    counted = dict.fromkeys(expected["classes"], 0)
    for name in members["train"]:
        counted[name.split("_")[0]] += 1
    assert counted == expected["splits"]["train"]["per_class"]
    assert set(expected["splits"]["val"]["per_class"].values()) == {2}


def test_members_are_not_in_the_order_of_their_names(members):
    for found in members.values():
        assert list(found) != sorted(found)
    assert [f"ILSVRC2010_val_{n:08d}.JPEG" for n in range(1, 21)] == sorted(members["val"])


def test_the_ground_truth_gives_the_devkit_ids_in_the_order_of_names(drawn, expected):
    with tarfile.open(drawn / "ILSVRC2010_devkit-1.0.tar.gz") as kit:
        val_truth = files(kit)["devkit-1.0/data/ILSVRC2010_validation_ground_truth.txt"]
    test_truth = (drawn / "ILSVRC2010_test_ground_truth.txt").read_bytes()

    synset_of_id = {devkit_id: synset for synset, devkit_id in expected["devkit_ids"].items()}
    for split, truth in (("val", val_truth), ("test", test_truth)):
        labels = [expected["classes"].index(synset_of_id[int(line)]) for line in truth.split()]
        assert labels == [expected["labels"][split][name] for name in sorted(expected["labels"][split])]


def test_the_devkit_lists_classes_and_internal_synsets_as_the_real_one(drawn, expected):
    with tarfile.open(drawn / "ILSVRC2010_devkit-1.0.tar.gz") as kit:
        content = loadmat(io.BytesIO(files(kit)["devkit-1.0/data/meta.mat"]), squeeze_me=True)

    rows = content["synsets"]
    assert rows.dtype.names == (
        "ILSVRC2010_ID", "WNID", "words", "gloss",
        "num_children", "children", "wordnet_height", "num_train_images",
    )  # fmt: skip
    leaves, internals = rows[rows["num_children"] == 0], rows[rows["num_children"] > 0]
    assert dict(zip(leaves["WNID"], leaves["ILSVRC2010_ID"], strict=True)) == expected["devkit_ids"]
    assert list(leaves["WNID"]) != sorted(leaves["WNID"])
    assert list(leaves["num_train_images"]) == [6] * 10
    assert list(internals["ILSVRC2010_ID"]) == [1001, 1002, 1003]
    assert "striped disc" in list(leaves["words"])
    assert content["cost_matrix"].shape == (10, 10)
    assert content["cost_matrix"].dtype == np.uint8


@pytest.mark.parametrize("num_classes", [2, 10, 100])
def test_devkit_ids_never_follow_the_order_of_synsets(num_classes):
    for seed in range(20):
        plan = plan_sample({"train": 1, "val": 1, "test": 1}, num_classes, seed)
        ids = [entry.devkit_id for entry in plan.classes]

        assert sorted(ids) == list(range(1, num_classes + 1))
        assert ids != sorted(ids)
        assert [entry.wnid for entry in plan.classes] == sorted(entry.wnid for entry in plan.classes)


def test_patches_carry_the_names_of_spoiled_members_and_sound_images(drawn, expected, members):
    with tarfile.open(drawn / "patch_images.tar") as archive:
        patches = files(archive)

    assert set(patches) == {f"patch_images/{p['split']}/{p['name']}" for p in expected["patches"]}
    assert {p["split"]: p["spoiled"] for p in expected["patches"]}.keys() == {"train", "val", "test"}
    for patch in expected["patches"]:
        good = patches[f"patch_images/{patch['split']}/{patch['name']}"]
        spoiled = members[patch["split"]][patch["name"]]
        assert decoded(good).size[0] > 50
        if patch["spoiled"] == "blank":
            assert np.asarray(decoded(spoiled)).min() == 255
        else:
            assert good.startswith(spoiled)
            with pytest.raises(OSError, match="truncated"):
                decoded(spoiled)


def test_every_oddity_is_what_its_name_says(expected, members):
    def look(name: str) -> Any:
        return decoded(odd(expected, members, name))

    assert decoded(gzip.decompress(odd(expected, members, "gzip"))).format == "JPEG"
    assert look("png").format == "PNG"
    for name in ("cmyk", "cmyk-val"):
        assert look(name).mode == "CMYK"
        assert look(name).info["adobe_transform"] == 0
    for name in ("greyscale-1", "greyscale-2", "greyscale-val"):
        assert look(name).mode == "L"
    assert look("progressive").info["progressive"]
    assert look("subsampling-444").layer[0][1:3] == (1, 1)
    assert look("subsampling-422").layer[0][1:3] == (2, 1)
    assert look("tiny-75x56").size == (75, 56)
    assert look("large-1600x1200").size == (1600, 1200)
    assert look("wide-900x150").size == (900, 150)
    assert len(expected["oddities"]) == 13


def test_images_are_portrait_and_landscape_of_many_sizes(expected, members):
    special = {at["name"] for at in [*expected["oddities"].values(), *expected["patches"]]}
    sizes = [decoded(data).size for name, data in members["train"].items() if name not in special]

    assert len(set(sizes)) > 30
    assert any(height > width for width, height in sizes)
    assert any(width > height for width, height in sizes)


def test_the_classes_can_be_named_and_none_comes_twice():
    named = [kind.words for kind in kinds(100)]

    assert len(set(named)) == 100
    assert named[:3] == ["striped disc", "checkered star", "dotted heart"]


def test_the_mean_colour_alone_tells_few_of_the_classes():
    shown = kinds(10)

    def colours(seed: int) -> np.ndarray[Any, Any]:
        rng = np.random.default_rng(seed)
        return np.array([[np.mean(picture(k, 160, 120, rng), axis=(0, 1)) for k in shown] for _ in range(30)])

    # The best that a linear rule can do with three numbers: nearest class in the whitened space.
    seen, unseen = colours(0), colours(1)
    spread = np.linalg.inv(np.cov((seen - seen.mean(axis=0)).reshape(-1, 3).T))
    away = unseen[:, :, None, :] - seen.mean(axis=0)
    nearest = np.einsum("ncki,ij,nckj->nck", away, spread, away).argmin(axis=2)
    error = np.mean(nearest != np.arange(10))
    assert 0.5 < error < 0.9


def test_a_folder_that_is_not_empty_is_refused_with_exit_code_2_and_left_alone(tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    done = subprocess.run(alexshard("sample", tmp_path), capture_output=True, text=True, check=False)

    assert done.returncode == 2
    assert f"{tmp_path} is not empty" in done.stderr
    assert "Traceback" not in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_a_file_in_place_of_the_folder_is_refused(tmp_path):
    path = tmp_path / "file"
    path.write_text("")

    with pytest.raises(WrongCall, match="is a file"):
        draw_sample(path, COUNTS)


def test_a_disk_that_is_full_is_told_in_words_and_nothing_stays(tmp_path, monkeypatch):
    def full(*_arguments):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(sample_archive, "write_tar", full)

    with pytest.raises(AlexshardError, match="dest cannot be written: No space left on device"):
        draw_sample(tmp_path / "dest", {"train": 2, "val": 2, "test": 2}, num_classes=2)

    assert list(tmp_path.iterdir()) == []


def test_a_place_that_may_not_be_written_to_is_told_in_words(tmp_path):
    (tmp_path / "file").write_text("")

    done = subprocess.run(
        alexshard("sample", tmp_path / "file" / "dest"), capture_output=True, text=True, check=False
    )

    assert (done.returncode, done.stdout) == (1, "")
    assert f"error: {tmp_path / 'file' / 'dest'} cannot be written: Not a directory" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("existing", [False, True])
def test_an_interrupted_drawing_leaves_nothing_behind(tmp_path, existing):
    dest = tmp_path / "dest"
    if existing:
        dest.mkdir()
    drawn = 0

    def interrupt(number: int) -> None:
        nonlocal drawn
        drawn += number
        if drawn == 70:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        draw_sample(dest, COUNTS, on_images=interrupt)

    assert dest.exists() == existing
    assert not existing or not list(dest.iterdir())


def test_what_a_killed_run_left_does_not_hinder_the_next(tmp_path):
    process = subprocess.Popen(alexshard("sample", tmp_path / "dest"), stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    process.stderr.readline()  # the first line of progress: it is drawing
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stderr.close()
    assert EXPECTED_NAME not in {path.name for path in (tmp_path / "dest").iterdir()}

    run(*alexshard("sample", tmp_path / "dest", "--train", 20, "--val", 2, "--test", 2))

    assert len(list((tmp_path / "dest").iterdir())) == 7


def test_the_command_ends_with_the_next_one_to_type(tmp_path):
    out = run(*alexshard("sample", tmp_path / "dest", "--train", 12, "--val", 2, "--test", 2, "--classes", 3))

    assert out.endswith(f"next:\n  alexshard build {tmp_path / 'dest'}\n")


@pytest.mark.parametrize(
    "arguments",
    [
        *(["--classes", "1"], ["--train", "0"], ["--seed", "-1"], ["--nonsense"]),
        ["--train", "9"],  # of ten classes: one without images cannot be packed
    ],
)
def test_arguments_out_of_range_are_wrong_calls(tmp_path, arguments):
    done = subprocess.run(
        alexshard("sample", tmp_path / "dest", *arguments), capture_output=True, text=True, check=False
    )

    assert done.returncode == 2
    assert not (tmp_path / "dest").exists()
