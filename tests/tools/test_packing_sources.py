"""What a folder holds is found by looking, and counted to the last image."""

from __future__ import annotations

import errno
import io
import json
import os
import shutil
import tarfile
import unicodedata
from collections import Counter

import pytest
from alexshard.shards import AlexshardError, Split, WrongCall
from alexshard.tools.packing import BadArchive, BadSource
from alexshard.tools.packing.sources import Listing, list_source

from tests.tools.drawn import DEVKIT_IDS, WNIDS, folders, ilsvrc, jpeg, meta_mat, named_images, tar_bytes

KINDS = ["2010", "2012", "full", "folder", "cifar"]


def facts(listing: Listing) -> dict[str, object]:
    """What of a listing must not depend on whether the archives were extracted."""
    found: dict[str, object] = {"classes": listing.classes}
    for split, images in listing.splits.items():
        patched = [i in images.patched for i in range(len(images))]
        found[split] = sorted(zip(images.names, images.size, images.label, patched, strict=True))
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_every_real_source_is_listed_as_expected(assembled, kind):
    source = assembled(kind)
    expected = json.loads((source / "EXPECTED.json").read_text(encoding="utf-8"))

    listing = list_source(source)

    assert [entry.synset for entry in listing.classes] == expected["classes"]
    ids = {entry.synset: entry.devkit_id for entry in listing.classes if entry.devkit_id is not None}
    assert ids == expected["devkit_ids"]
    assert listing.splits.keys() == expected["splits"].keys()
    for split, images in listing.splits.items():
        wanted = expected["splits"][split]
        per_class = Counter(expected["classes"][label] for label in images.label)
        assert (len(images), len(images.patched), per_class) == (
            wanted["images"],
            wanted["patched"],
            wanted["per_class"],
        )
        assert {images.names[i] for i in images.patched} == {
            patch["name"] for patch in expected["patches"] if patch["split"] == split
        }
    for split, labels in expected["labels"].items():
        images = listing.splits[Split(split)]
        assert dict(zip(images.names, images.label, strict=True)) == labels
    assert (listing.refusals, listing.remarks) == ([], [])


@pytest.mark.parametrize("kind", ["2010", "2012"])
@pytest.mark.parametrize("form", ["inner tars", "folders", "folders named as the archives"])
def test_extracted_archives_list_the_same_images(assembled, tmp_path, kind, form):
    source, extracted = assembled(kind), tmp_path / "extracted"
    extracted.mkdir()
    for path in source.iterdir():
        if path.name.endswith(".tar.gz"):
            with tarfile.open(path) as archive:
                archive.extractall(extracted / path.name.removesuffix(".tar.gz"), filter="data")
        elif path.suffix == ".txt":
            shutil.copy(path, extracted)
        elif path.suffix == ".tar":
            split = path.stem.rpartition("_")[2]
            name = split if split in set(Split) and form == "folders" else path.stem
            folder = extracted if split == "images" else extracted / name
            with tarfile.open(path) as archive:
                archive.extractall(folder, filter="data")
            if split == "train" and form != "inner tars":
                for inner in list(folder.glob("*.tar")):
                    with tarfile.open(inner) as archive:
                        archive.extractall(folder / inner.stem, filter="data")
                    inner.unlink()

    listing = list_source(extracted)

    assert "extracted" in listing.kind
    assert facts(listing) == facts(list_source(source))


def test_validation_images_sorted_into_class_folders_get_their_labels_from_them(tmp_path):
    source = ilsvrc(tmp_path)
    (source / "ILSVRC2012_img_val.tar").unlink()
    folders(source / "val", {"n00000003": {"ILSVRC2012_val_00000007.JPEG": jpeg(1)}})

    images = list_source(source).splits[Split.VAL]

    assert (images.names, list(images.label)) == (["ILSVRC2012_val_00000007.JPEG"], [2])


def test_labels_come_from_ground_truth_and_devkit_not_from_the_order_of_ids(tmp_path):
    images = list_source(ilsvrc(tmp_path)).splits[Split.VAL]

    labels = dict(zip(images.names, images.label, strict=True))

    assert [labels[name] for name in sorted(labels)] == [0, 1, 2, 0]  # ids 2, 3, 1, 2


def test_train_alone_needs_no_devkit(tmp_path):
    source = ilsvrc(tmp_path, val=0)
    (source / "ILSVRC2012_devkit_t12.tar").unlink()

    listing = list_source(source)

    assert [(entry.synset, entry.devkit_id) for entry in listing.classes] == [(wnid, None) for wnid in WNIDS]


def test_missing_ground_truth_is_an_error_that_names_the_file(tmp_path):
    source = ilsvrc(tmp_path, truth=None)

    with pytest.raises(BadSource, match=r"no ILSVRC\*_validation_ground_truth\.txt") as caught:
        list_source(source)

    assert "--unlabelled" in caught.value.remedy
    assert caught.value.exit_code == 1


def test_missing_ground_truth_with_unlabelled_gives_samples_without_labels(tmp_path):
    images = list_source(ilsvrc(tmp_path, truth=None), unlabelled=True).splits[Split.VAL]

    assert (images.labelled, list(images.label)) == (False, [-1] * 4)


@pytest.mark.parametrize(
    ("truth", "what"),
    [
        ((2, 3), "beyond the 2 lines"),
        ((2, 3, 1, 77), "says 77, an id that"),
        ((2, 3, 1, 1001), "n00009999\\), a class that train lacks"),
    ],
)
def test_ground_truth_that_does_not_fit_is_an_error(tmp_path, truth, what):
    with pytest.raises(BadSource, match=what):
        list_source(ilsvrc(tmp_path, truth=truth))


@pytest.mark.parametrize(
    ("wnid", "what"), [("n00000009", "which is not in"), ("n00009999", "which is no leaf in")]
)
def test_a_training_archive_that_is_no_class_of_the_devkit_is_an_error(tmp_path, wnid, what):
    train = named_images() | {wnid: [(f"{wnid}_1.JPEG", jpeg(1))]}

    with pytest.raises(BadSource, match=what):
        list_source(ilsvrc(tmp_path, train))


def test_patches_that_replace_nothing_are_told(tmp_path):
    source = ilsvrc(tmp_path)
    patches = [("patch_images/train/n00000001_1.JPEG", jpeg(7)), ("patch_images/train/gone.JPEG", jpeg(8))]
    (source / "patch_images.tar").write_bytes(tar_bytes(patches))

    listing = list_source(source)

    assert len(listing.splits[Split.TRAIN].patched) == 1
    assert [remark for remark in listing.remarks if "replace nothing" in remark and "train/gone.JPEG" in remark]


def test_the_second_of_two_members_of_one_name_is_refused_and_counted(tmp_path):
    train = named_images()
    name, data = train["n00000001"][0]
    train["n00000001"] += [(name, data), (name, jpeg(99))]

    listing = list_source(ilsvrc(tmp_path, train))

    assert [refusal.reason.partition("with ")[2] for refusal in listing.refusals] == [
        "the same bytes",
        "other bytes",
    ]
    assert (listing.found(Split.TRAIN), len(listing.splits[Split.TRAIN])) == (14, 12)


@pytest.mark.parametrize("members_left", [0, 1, 3])
@pytest.mark.parametrize("name", ["ILSVRC2012_img_val.tar", "ILSVRC2012_img_train.tar"])
def test_an_archive_cut_between_two_members_is_an_error(tmp_path, name, members_left):
    source = ilsvrc(tmp_path)
    path = source / name
    with tarfile.open(path) as archive:
        starts = [member.offset for member in archive] + [archive.offset]
    path.write_bytes(path.read_bytes()[: starts[members_left]])

    with pytest.raises(BadArchive, match=f"{name} is cut"):
        list_source(source)


@pytest.mark.parametrize(
    ("images", "what"), [(b"", "is cut"), (tar_bytes([]), "the class n00000002 of .* no image")]
)
def test_a_class_archive_without_images_is_an_error_as_an_empty_class_folder_is(tmp_path, images, what):
    source = ilsvrc(tmp_path)
    inner = [("n00000001.tar", tar_bytes([("n00000001_1.JPEG", jpeg(1))])), ("n00000002.tar", images)]
    (source / "ILSVRC2012_img_train.tar").write_bytes(tar_bytes(inner))

    with pytest.raises(AlexshardError, match=what) as caught:
        list_source(source)
    assert isinstance(caught.value, BadSource | BadArchive)


def test_a_development_kit_of_another_edition_beside_the_right_one_changes_nothing_but_a_remark(tmp_path):
    source = ilsvrc(tmp_path / "source")
    alone = list_source(source)
    other = [
        ("kit/data/meta.mat", meta_mat({wnid: 4 - number for wnid, number in DEVKIT_IDS.items()}, year=2013)),
        ("kit/data/ILSVRC2013_validation_ground_truth.txt", b"1\n1\n1\n1\n"),
    ]
    (source / "ILSVRC2013_devkit.tar").write_bytes(tar_bytes(other))

    both = list_source(source)

    assert facts(both) == facts(alone)
    assert both.remarks == [
        "left alone, being of another edition: ILSVRC2013_devkit.tar/kit/data/meta.mat, "
        "ILSVRC2013_devkit.tar/kit/data/ILSVRC2013_validation_ground_truth.txt"
    ]


def test_the_kit_of_another_edition_alone_is_no_ground_truth(tmp_path):
    source = ilsvrc(tmp_path / "source", truth=None)
    (source / "ILSVRC2010_validation_ground_truth.txt").write_bytes(b"1\n" * 4)

    with pytest.raises(BadSource, match="no ground truth") as caught:
        list_source(source)

    assert "of another edition: ILSVRC2010_validation_ground_truth.txt" in caught.value.where


@pytest.mark.parametrize("name", ["meta.mat", "ILSVRC2012_validation_ground_truth.txt"])
def test_two_development_kits_of_one_edition_must_agree(tmp_path, name):
    source = ilsvrc(tmp_path)
    with tarfile.open(source / "ILSVRC2012_devkit_t12.tar") as archive:
        same = archive.extractfile(f"kit/data/{name}").read()
    (source / name).write_bytes(same)
    list_source(source)
    (source / name).write_bytes(meta_mat({**DEVKIT_IDS, "n00000004": 4}) if name == "meta.mat" else b"1\n" * 6)

    with pytest.raises(BadSource, match=f"ILSVRC2012_devkit_t12.tar/kit/data/{name} and {name} differ"):
        list_source(source)


def test_two_editions_in_one_folder_are_an_error(tmp_path):
    source = ilsvrc(tmp_path)
    shutil.copy(source / "ILSVRC2012_img_val.tar", source / "ILSVRC2010_images_test.tar")

    with pytest.raises(BadSource, match="more than one edition: 2010, 2012"):
        list_source(source)


@pytest.mark.parametrize("above", ["", "train/"])
def test_classes_are_folder_names_by_code_point_after_nfc(tmp_path, above):
    names = ["Zebra", "zebra", unicodedata.normalize("NFD", "église"), "a.b", "ゴルフ"]
    source = folders(tmp_path, {above + name: {"1.jpg": jpeg(1)} for name in names})

    listing = list_source(source)

    assert [entry.synset for entry in listing.classes] == ["Zebra", "a.b", "zebra", "église", "ゴルフ"]


def test_files_that_are_no_images_are_passed_over_aloud_and_links_and_pipes_are_refused(tmp_path):
    files = {"1.jpg": jpeg(1), "sub/2.PNG": jpeg(2), "notes.txt": b"", ".hidden.jpg": b""}
    source = folders(tmp_path, {"cat": files})
    os.mkfifo(source / "cat" / "pipe.jpg")
    (source / "cat" / "dangling.jpg").symlink_to(source / "nowhere")

    listing = list_source(source)

    assert listing.splits[Split.TRAIN].names == ["cat/1.jpg", "cat/sub/2.PNG"]
    assert {refusal.name: refusal.reason for refusal in listing.refusals} == {
        "cat/pipe.jpg": "no regular file",
        "cat/dangling.jpg": "cannot be read: No such file or directory",
    }
    assert listing.remarks == ["passed over, having no image's ending: 1 below SOURCE/cat/"]
    assert {refusal.source for refusal in listing.refusals} == {"SOURCE"}


@pytest.mark.parametrize("above", ["", "train/"])
def test_images_outside_of_every_class_folder_are_refused_and_counted(tmp_path, above):
    source = folders(
        tmp_path, {above + "cat": {"1.jpg": jpeg(1)}, above: {"loose.jpg": jpeg(2), "readme.txt": b""}}
    )

    listing = list_source(source)

    assert [(refusal.name, refusal.reason) for refusal in listing.refusals] == [
        ("loose.jpg", "in no class folder")
    ]
    assert listing.found(Split.TRAIN) == 2


@pytest.mark.parametrize("part", ["train", "val"])
def test_images_outside_of_the_synset_folders_of_an_edition_are_refused_and_counted(tmp_path, part):
    source = ilsvrc(tmp_path, val=0)
    files = {"n00000001/n00000001_1.JPEG": jpeg(1), "loose.JPEG": jpeg(2), "other/x.jpg": jpeg(3), "list.txt": b""}
    (source / "ILSVRC2012_img_train.tar").unlink()
    folders(source, {"train/n00000001": {"n00000001_1.JPEG": jpeg(1)}, part: files})

    listing = list_source(source)

    assert sorted(refusal.name for refusal in listing.refusals) == ["loose.JPEG", "other/x.jpg"]
    assert {refusal.reason for refusal in listing.refusals} == {"in no folder of a class"}
    assert listing.found(Split(part)) == 3


@pytest.mark.parametrize("folder", ["val", "ILSVRC2012_img_val", "."])
def test_extracted_images_without_a_number_are_refused_and_counted_as_in_the_archive(tmp_path, folder):
    source = ilsvrc(tmp_path, val=0)
    good = "ILSVRC2012_val_00000001.JPEG"
    odd = ["ILSVRC2012_val_00000004.jpg", "ILSVRC2012_val_4.JPEG", "odd.JPEG"]
    folders(source, {folder: {name: jpeg(1) for name in [good, *odd]}})

    listing = list_source(source)

    assert listing.splits[Split.VAL].names == [good]
    assert [(refusal.name, refusal.split) for refusal in listing.refusals] == [(name, "val") for name in odd]


def test_a_class_called_train_beside_other_classes_is_an_error_that_names_them(tmp_path):
    source = folders(tmp_path, {name: {"x/1.jpg": jpeg(1)} for name in ("car", "bus", "train")})

    with pytest.raises(BadSource, match="folders of images beside: bus, car"):
        list_source(source)


def test_what_lies_beside_the_splits_is_told(tmp_path):
    files = {"train/cat": {"1.jpg": jpeg(1)}, "": {"preview.png": jpeg(2)}, "notes": {"a.txt": b""}}

    remarks = list_source(folders(tmp_path, files)).remarks

    assert remarks == ["left alone, being in no split: 1 images in SOURCE, first preview.png"]


def test_folders_of_images_beside_an_edition_are_told(tmp_path):
    source = folders(ilsvrc(tmp_path), {"thumbnails": {"a.jpg": jpeg(1)}, "boxes": {"a.xml": b""}})

    assert list_source(source).remarks == ["left alone, being no part of the edition: images in thumbnails"]


# Reading is denied by hand in these two: root, as in many containers, may read whatever a file's mode says.


def test_a_class_folder_that_may_not_be_read_is_an_error_in_words(tmp_path, monkeypatch):
    source = folders(tmp_path, {"cat": {"1.jpg": jpeg(1)}, "cat/deep": {"2.jpg": jpeg(2)}})
    scandir = os.scandir

    def denying(folder):
        if str(folder).endswith("deep"):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(folder))
        return scandir(folder)

    monkeypatch.setattr(os, "scandir", denying)

    with pytest.raises(BadSource, match="cannot be read: Permission denied") as caught:
        list_source(source)

    assert caught.value.where.endswith("cat/deep")


@pytest.mark.parametrize(
    "name", ["ILSVRC2012_img_train.tar", "ILSVRC2012_img_val.tar", "ILSVRC2012_devkit_t12.tar"]
)
def test_an_archive_that_cannot_be_read_is_an_error_in_words(tmp_path, monkeypatch, name):
    source = ilsvrc(tmp_path)
    openly = io.open

    def denying(file, *arguments, **options):
        if str(file).endswith(name):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(file))
        return openly(file, *arguments, **options)

    monkeypatch.setattr(io, "open", denying)

    with pytest.raises(BadSource, match="cannot be read: Permission denied") as caught:
        list_source(source)

    assert caught.value.where.endswith(name)


def test_a_validation_class_that_train_lacks_is_an_error(tmp_path):
    source = folders(tmp_path, {"train/cat": {"1.jpg": jpeg(1)}, "val/dog": {"1.jpg": jpeg(2)}})

    with pytest.raises(BadSource, match="1 classes that train lacks, first 'dog'"):
        list_source(source)


def test_two_folders_that_look_the_same_are_an_error(tmp_path):
    names = [unicodedata.normalize(form, "église") for form in ("NFC", "NFD")]
    source = folders(tmp_path, {name: {"1.jpg": jpeg(1)} for name in names})

    with pytest.raises(BadSource, match="in two Unicode forms"):
        list_source(source)


def test_a_class_folder_without_images_is_an_error(tmp_path):
    source = folders(tmp_path, {"cat": {"1.jpg": jpeg(1)}, "annotations": {"1.xml": b""}})

    with pytest.raises(BadSource, match="annotations holds no image") as caught:
        list_source(source)
    assert "remove" not in caught.value.remedy  # what it holds may be all there is


def made_folders(path):
    folders(path, {f"{split}/{name}": {"1.jpg": jpeg(1)} for split in ("train", "val") for name in ("cat", "dog")})


@pytest.mark.parametrize("kind", [ilsvrc, made_folders])
def test_a_folder_that_is_one_too_high_names_the_sources_in_it(tmp_path, kind):
    folders(tmp_path, {"notes": {"readme.txt": b"where they came from"}, "pictures": {"1.jpg": jpeg(1)}})
    kind(tmp_path / "2010")
    kind(tmp_path / "2012 new")

    with pytest.raises(WrongCall, match="holds 2 sources") as caught:
        list_source(tmp_path)

    assert caught.value.remedy == f"say which: {tmp_path / '2010'}, '{tmp_path / '2012 new'}'"


def test_classes_of_numbered_images_are_no_sources_though_one_is_empty(tmp_path):
    for number, wnid in enumerate(WNIDS[:2]):
        folders(tmp_path, {wnid: {f"ILSVRC2012_val_0000000{number}.JPEG": jpeg(number)}})
    (tmp_path / WNIDS[2]).mkdir()

    with pytest.raises(BadSource, match="n00000003 holds no image"):
        list_source(tmp_path)


def test_a_class_may_have_a_folder_called_train(tmp_path):
    folders(tmp_path, {"station/train": {"1.jpg": jpeg(1)}, "cat": {"1.jpg": jpeg(2)}})

    assert [entry.synset for entry in list_source(tmp_path).classes] == ["cat", "station"]


def test_a_test_folder_without_classes_is_unlabelled(tmp_path):
    source = folders(tmp_path, {"train/cat": {"1.jpg": jpeg(1)}, "test": {"7.jpg": jpeg(2)}})

    with pytest.raises(BadSource, match="has no class folders"):
        list_source(source)
    assert not list_source(source, unlabelled=True).splits[Split.TEST].labelled


def test_what_is_nothing_known_is_a_wrong_call_that_says_what_was_looked_for(tmp_path):
    (tmp_path / "readme.txt").write_text("nothing here")

    with pytest.raises(WrongCall, match="holds nothing that is known") as caught:
        list_source(tmp_path)

    assert "ILSVRC2012_img_{train,val,test}.tar" in caught.value.where


def test_a_split_that_is_not_there_is_a_wrong_call_with_those_that_are(tmp_path):
    with pytest.raises(WrongCall, match="has no test") as caught:
        list_source(ilsvrc(tmp_path), splits=[Split.TRAIN, Split.TEST])

    assert (caught.value.where, caught.value.remedy) == ("it has train, val", "--splits train")


def test_a_choice_without_train_needs_the_statistics_of_another_set(tmp_path):
    with pytest.raises(WrongCall) as caught:
        list_source(ilsvrc(tmp_path), splits=[Split.VAL])

    assert "--statistics-from" in caught.value.remedy


def test_the_source_may_be_a_folder_of_inner_tars(tmp_path):
    for wnid, images in named_images().items():
        (tmp_path / f"{wnid}.tar").write_bytes(tar_bytes(images))

    assert list_source(tmp_path).found(Split.TRAIN) == 12


def test_a_file_is_no_source(tmp_path):
    file = tmp_path / "file"
    file.write_text("")

    with pytest.raises(WrongCall, match="is no folder"):
        list_source(file)
