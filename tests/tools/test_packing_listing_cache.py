"""A source that has not changed is not looked through again; one that has, is."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from alexshard.shards import Split
from alexshard.tools.packing import BadSource, BuildSettings, MaxBad, build, plan_build, sources
from alexshard.tools.packing.sources import Listing, cached_listing, list_source, save_listing

from tests.tools.drawn import SMALL, folders, ilsvrc, jpeg, named_images, tar_bytes


def looks(source: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, **settings: object) -> tuple[Listing, bool]:
    """The listing, and whether the source was looked through for it."""
    looked = []

    def counting(*arguments, **options):
        looked.append(arguments)
        return list_source(*arguments, **options)

    monkeypatch.setattr(sources, "list_source", counting)
    return cached_listing(source, cache, **settings), bool(looked)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Archives with refusals, patches and remarks, so that every field of a listing holds something."""
    train = named_images()
    train["n00000001"] += [train["n00000001"][0]]
    source = ilsvrc(tmp_path / "source", train)
    patches = [("patch_images/train/n00000001_1.JPEG", jpeg(7)), ("patch_images/train/gone.JPEG", jpeg(8))]
    (source / "patch_images.tar").write_bytes(tar_bytes(patches))
    return source


def test_a_kept_listing_is_the_listing(source, tmp_path, monkeypatch):
    cache = tmp_path / "listing.npz"
    first, looked_first = looks(source, cache, monkeypatch)
    save_listing(first, cache)

    again, looked_again = looks(source, cache, monkeypatch)

    assert first.refusals
    assert first.remarks
    assert first.splits[Split.TRAIN].patched
    assert (again, looked_first, looked_again) == (first, True, False)


def test_odd_names_and_the_number_found_come_back(tmp_path, monkeypatch):
    odd = os.fsdecode(b"\xff caf\xc3\xa9.jpg")
    source = folders(tmp_path / "source", {"cat": {odd: jpeg(1), "ゴルフ.jpg": jpeg(2)}})
    save_listing(cached_listing(source, tmp_path / "cache"), tmp_path / "cache")
    told = []

    again = looks(source, tmp_path / "cache", monkeypatch, on_found=told.append)[0]

    assert (sorted(again.splits[Split.TRAIN].names), sum(told)) == (sorted([f"cat/{odd}", "cat/ゴルフ.jpg"]), 2)


def touch(path: Path) -> None:
    os.utime(path, ns=(0, path.stat().st_mtime_ns + 1))


CHANGES = {
    "an archive's time": lambda source: touch(source / "ILSVRC2012_img_val.tar"),
    "the development kit's time": lambda source: touch(source / "ILSVRC2012_devkit_t12.tar"),
    "an archive taken away": lambda source: (source / "patch_images.tar").unlink(),
    "a file put beside": lambda source: (source / "ILSVRC2012_validation_ground_truth.txt").write_bytes(
        b"2\n" * 6
    ),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_source_is_looked_through_again(source, tmp_path, monkeypatch, change):
    save_listing(cached_listing(source, tmp_path / "cache"), tmp_path / "cache")
    CHANGES[change](source)

    if change == "a file put beside":
        with pytest.raises(BadSource, match="differ"):
            looks(source, tmp_path / "cache", monkeypatch)
    else:
        assert looks(source, tmp_path / "cache", monkeypatch)[1]


@pytest.mark.parametrize("where", ["cat", "cat/deep", "linked"])
def test_an_image_added_anywhere_in_a_folder_is_found(tmp_path, monkeypatch, where):
    source = folders(tmp_path / "source", {"cat": {"1.jpg": jpeg(1)}, "cat/deep": {"2.jpg": jpeg(2)}})
    folders(tmp_path, {"elsewhere": {"3.jpg": jpeg(3)}})
    (source / "linked").symlink_to(tmp_path / "elsewhere")
    before = cached_listing(source, tmp_path / "cache")
    save_listing(before, tmp_path / "cache")
    (source / where / "new.jpg").write_bytes(jpeg(4))
    os.utime(source / where, ns=(0, before.hangs_on["states"][0][2] + 10**9))

    listing, looked = looks(source, tmp_path / "cache", monkeypatch)

    assert looked
    assert listing.found(Split.TRAIN) == before.found(Split.TRAIN) + 1


@pytest.mark.parametrize("settings", [{"splits": [Split.TRAIN]}, {"unlabelled": True}])
def test_another_question_is_another_listing(source, tmp_path, monkeypatch, settings):
    save_listing(cached_listing(source, tmp_path / "cache"), tmp_path / "cache")

    assert looks(source, tmp_path / "cache", monkeypatch, **settings)[1]


def test_a_listing_of_other_code_is_not_used(source, tmp_path, monkeypatch):
    save_listing(cached_listing(source, tmp_path / "cache"), tmp_path / "cache")
    monkeypatch.setattr(sources.cache, "_code", lambda: "of the next version")

    assert looks(source, tmp_path / "cache", monkeypatch)[1]


def test_a_cache_with_any_damage_is_passed_over(source, tmp_path, monkeypatch):
    cache = tmp_path / "cache"
    save_listing(cached_listing(source, cache), cache)
    whole = cache.read_bytes()
    damaged = [b"", whole[:20], whole[:-1], whole + b"\0"]
    damaged += [whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :] for at in range(0, len(whole), 97)]

    for data in damaged:
        cache.write_bytes(data)
        assert sources.load_listing(cache, source) is None


def test_a_source_that_cannot_be_listed_says_so_as_without_a_cache(tmp_path):
    with pytest.raises(sources.WrongCall, match="does not exist"):
        cached_listing(tmp_path / "nowhere", tmp_path / "cache")


def test_a_build_that_met_an_image_of_another_size_lists_the_source_again_when_begun_anew(tmp_path):
    source = folders(tmp_path / "source", {"cat": {f"{i}.jpg": jpeg(i) for i in range(6)}})
    out, image = tmp_path / "out", source / "cat" / "3.jpg"
    settings = BuildSettings(source=source, out=out, image=SMALL, max_bad=MaxBad.parse("0"))
    plan = plan_build(settings)
    image.write_bytes(jpeg(3, 90, 90))  # the folder's time stays what it was

    with pytest.raises(BadSource, match="bytes were listed"):
        build(plan, workers=1, on_progress=lambda *_: None)
    again = build(plan_build(settings), workers=1, on_progress=lambda *_: None, restart=True)

    assert again.manifest.splits["train"].samples == 6


def test_an_unfinished_build_keeps_the_listing_beside_the_output_and_does_not_look_again(source, tmp_path):
    out = tmp_path / "out"
    settings = BuildSettings(source=source, out=out, image=SMALL, max_bad=MaxBad.parse("100"))

    def interrupted(*_):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build(plan_build(settings), workers=1, on_progress=interrupted)
    plan = plan_build(settings)

    assert plan.listing.from_cache
    assert build(plan, workers=1, on_progress=lambda *_: None).manifest.splits["train"].samples == 12
