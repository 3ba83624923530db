"""What a build makes of sources that were made to do harm: each case, by the real command, in one table.

Every run is asked the same (guarded.py): does it end, in bounded memory, with one line a thing; is nothing written
outside of the output; is every image packed or in the quarantine. Sources are drawn (hostile.py and
hostile_images.py); what `assemble.py hostile` has is tested in test_packing_build.py.
"""

from __future__ import annotations

import os
import sys

import pytest
from alexshard.shards import KEY_LENGTH, read_rows
from alexshard.shards.naming import is_key
from alexshard.tools.packing import BadSource, BuildSettings, MaxBad, plan_build
from alexshard.tools.packing import build as packed
from alexshard.tools.packing.plan import unique_keys
from alexshard.tools.packing.sources.cache import hangs_on
from alexshard.tools.packing.sources.devkit import read_devkit
from PIL import Image

from tests.conftest import run
from tests.tools import drawn, hostile, hostile_images
from tests.tools.drawn import SMALL, folders, ilsvrc, jpeg, meta_mat, tar_bytes
from tests.tools.guarded import build, deep_folder, within

# --- images

PACKED = {  # case to note
    "sound": "",
    "one-pixel": "",
    "thread": "",
    "thread-across": "png",
    "jpeg-scans": "grey",
    "jpeg-exif-thumbnail": "",
    "jpeg-exif-loop": "",
    "jpeg-multi-picture": "cmyk",
    "png-huge-data": "png",
    "png-16-bits-large": "png",
    "bmp-upside-down": "bmp",
    "webp-frames": "webp",
}
REFUSED = {  # case to what the reason begins with
    "empty": "empty: no bytes",
    "text": "no image: begins with b'<html>not fo'",
    "svg": "no image: begins with",
    "a-tar": "no image: begins with",
    "zip-bomb": "no image: begins with b'PK",
    "xz-bomb": "no image: begins with b'\\xfd7zXZ",
    "gzip-bomb": "gzip data that inflates to more than 64,000,000 bytes",
    "gzip-in-gzip": "no image: begins with b'\\x1f\\x8b",
    "gzip-of-text": "no image: begins with b'text'",
    "gzip-cut": "damaged gzip data: it ends early",
    "jpeg-4-gigapixel": "claims 65500×65500 pixels",
    "jpeg-no-pixels": "no image: ",
    "jpeg-too-many-scans": "1,764 scans; an image of its size has up to 1,000",
    "jpeg-large-too-many-scans": "60 scans; an image of its size has up to 31",
    "jpeg-segments": "more than 4,000 segments before the first scan",
    "jpeg-fill": "more than 4,000 segments before the first scan",
    "jpeg-junk": "16,000,000 bytes that belong to no segment",
    "jpeg-arithmetic": "damaged JPEG: ",
    "jpeg-lossless": "damaged JPEG: ",
    "jpeg-12-bits": "damaged JPEG: Unsupported JPEG data precision 12",
    "jpeg-no-components": "no image: ",
    "jpeg-two-components": "no image: ",
    "jpeg-five-components": "no image: ",
    "jpeg-many-components": "no image: ",
    "jpeg-only-start": "no image: ",
    "png-4-gigapixel": "too many pixels",
    "png-huge-text": "cannot be decoded: Decompressed data too large",
    "png-huge-profile": "cannot be decoded: Decompressed data too large",
    "png-many-texts": "cannot be decoded: Too much memory used in text chunks",
    "png-many-chunks": "more than 100,000 chunks",
    "bmp-negative-width": "too many pixels",
    "bmp-lowest-height": "too many pixels",
    "bmp-far-away": "cannot be decoded: image file is truncated",
    "bmp-run-lengths": "a BMP of run lengths (8 bits), which is not read",
    "bmp-run-leaps": "a BMP of run lengths (4 bits), which is not read",
    "webp-large": "too many pixels",
    "webp-cut": "cannot be decoded: ",
}


def test_images_that_are_bombs_or_none_are_packed_or_refused_as_the_table_says(tmp_path):
    cases = hostile_images.images()
    inner = tar_bytes((f"n00000002_{case}.JPEG", data) for case, data in cases.items())
    source = hostile.edition(tmp_path / "source", inner)

    ended = build(tmp_path, source, "--max-bad", "100%", limit_mb=450)

    assert ended.code == 0, ended.lines
    reasons = {line["name"][10:-5]: line["reason"] for line in ended.quarantine()}
    notes = {name[10:-5]: note for name, note in ended.notes().items() if name.startswith("n00000002")}
    assert notes == PACKED
    assert reasons.keys() == REFUSED.keys() == cases.keys() - PACKED.keys()
    assert {case: reason for case, reason in reasons.items() if not reason.startswith(REFUSED[case])} == {}


# --- archives

NAMES_REFUSED = {"above", "above-long", "above-inside", "absolute", "null", "only-dot"}
KEYS = {
    "newline": "two_lines",
    "escape": "_2J_0_owned_",
    "not-utf-8": "caf",
    "windows": "CON",
    "backslashes": "_escaped",
    "option": "_rf",
}


def test_names_that_reach_outside_are_refused_and_all_others_packed_under_a_safe_key(tmp_path):
    cases = {case: name.decode("utf-8", "surrogateescape") for case, name in hostile.names().items()}

    ended = build(
        tmp_path, hostile.edition(tmp_path / "source", hostile.inner_of_names()), "--max-bad", 9, limit_mb=250
    )

    assert ended.code == 0, ended.lines
    refused = {line["name"] for line in ended.quarantine() if line["reason"].startswith("unsafe name")}
    assert refused == {cases[case] for case in NAMES_REFUSED}
    keys = {row.original: row.key for row in read_rows(ended.out / "samples.tsv")}
    packed = {case: keys[cases[case].rpartition("/")[2]] for case in cases.keys() - NAMES_REFUSED}
    assert {case: packed[case] for case in KEYS} == KEYS
    assert all(is_key(key) and len(key) <= KEY_LENGTH for key in keys.values())
    assert len({key.lower() for key in keys.values()}) == len(keys) == len(cases) - len(NAMES_REFUSED) + 4


ARCHIVES = {  # case to name and note of what is packed, or reason of what is refused
    "tar-in-tar-in-tar": {"level-2.JPEG": "", "n00000007.tar": "no image: begins with b'n00000008.ta"},
    "duplicates": {"n00000002_1.JPEG": "", "n00000002_2.JPEG": "", "twice": "the name comes twice"},
    "swallow-by-pax": {"n00000002_1.JPEG": ""},
    "many-pax-records": {f"n00000002_{number}.JPEG": "" for number in (1, 2, 3)},
    "kinds": {
        "n00000002_0.JPEG": "",
        "n00000002_1.JPEG": "a hard link",
        "n00000002_2.JPEG": "a symbolic link",
        "n00000002_3.JPEG": "a device or pipe",
        "n00000002_4.JPEG": "a device or pipe",
        "n00000002_5.JPEG": "a device or pipe",
        "n00000002_6.JPEG": "a sparse file",
        "n00000002_7.JPEG": "a sparse file",
        "n00000002_8.JPEG": "a member of unknown type",
    },
}
ARCHIVES_REFUSED = {
    "zero-bytes": "ILSVRC2012_img_train.tar/n00000002.tar is cut",
    "two-blocks-of-zeros": "the class n00000002 of ILSVRC2012_img_train.tar holds no image",
    "no-tar": "no tar header",
    "overlap-by-pax": "no tar header",
    "beyond-by-pax": "is cut",
    "negative-by-pax": "a size that is no number",
    "negative": "a member of negative or absurd size",
    "negative-octal": "a size that is no number",
    "absurd": "a member of negative or absurd size",
    "almost-absurd": "is cut",
    "beyond-the-inner": "is cut",
    "endless-name": "a name or extended header of 4,294,967,296 bytes",
    "endless-sparse-map": "no tar header",
    "pax-without-end": "an extended header that is none",
    "pax-of-nothing": "an extended header that is none",
}


@pytest.mark.parametrize("case", ARCHIVES)
def test_an_archive_that_is_odd_is_read_as_the_table_says(tmp_path, case):
    source = hostile.edition(tmp_path / "source", hostile.inners()[case])

    ended = build(tmp_path, source, "--max-bad", "100%", limit_mb=250)

    assert ended.code == 0, ended.lines
    found = {name: note for name, note in ended.notes().items() if not name.startswith("n00000001")}
    for line in ended.quarantine():
        found["twice" if line["reason"].startswith("duplicate") else line["name"]] = line["reason"]
    assert found.keys() == ARCHIVES[case].keys()
    assert {name: text for name, text in found.items() if ARCHIVES[case][name] not in text} == {}


@pytest.mark.parametrize("case", ARCHIVES_REFUSED)
def test_an_archive_that_lies_about_sizes_ends_the_build_in_one_line(tmp_path, case):
    ended = build(tmp_path, hostile.edition(tmp_path / "source", hostile.inners()[case]), limit_mb=200)

    assert ended.code == 1
    assert ARCHIVES_REFUSED[case] in ended.said
    assert not ended.out.exists()


def test_a_class_of_empty_members_by_the_thousand_is_one_message_or_one_long_quarantine(tmp_path):
    count = 60_000
    source = hostile.edition_of_empty_members(tmp_path / "source", count)

    ended = build(tmp_path, source, limit_mb=300)

    assert ended.code == 1
    assert "bad images so far, and of 60,004 at most 61 may be (--max-bad 0.1%)" in ended.said
    assert len(ended.told) < 20


@pytest.mark.slow
def test_a_million_empty_members_are_refused_in_bounded_time_and_memory(tmp_path):
    source = hostile.edition_of_empty_members(tmp_path / "source", 1_000_000)

    ended = build(tmp_path, source, "--max-bad", "100%", limit_mb=1500, wall_s=1200)

    assert ended.code == 0, ended.lines
    assert {line["reason"] for line in ended.quarantine()} == {"empty: no bytes"}
    assert len(ended.quarantine()) == 1_000_000
    assert len(ended.told) < 30


@pytest.mark.slow
def test_names_that_reach_outside_by_the_million_take_bounded_time_and_memory(tmp_path):
    inner = b"".join(hostile.header(b"../%d.JPEG" % number, 0) for number in range(1_000_000)) + hostile.END

    ended = build(tmp_path, hostile.edition(tmp_path / "source", inner), limit_mb=2000, wall_s=1200)

    assert ended.code == 1
    assert "1,000,000 bad images so far, and of 1,000,004" in ended.said


# --- folders


def test_what_is_no_regular_file_is_refused_without_being_opened(tmp_path):
    ended = build(tmp_path, hostile.traps(tmp_path / "source"), "--max-bad", "100%", limit_mb=200)

    assert ended.code == 0, ended.lines
    assert ended.notes() == {"cat/sound.jpg": "", "dog/sound.jpg": ""}
    assert {line["name"]: line["reason"].partition(":")[0] for line in ended.quarantine()} == {
        "cat/pipe.jpg": "no regular file",
        "cat/socket.jpg": "no regular file",
        "cat/zeros.jpg": "no regular file",
        "cat/folder.jpg": "no regular file",
        "cat/loop.jpg": "cannot be read",
        "cat/nowhere.jpg": "cannot be read",
        "cat/sparse.jpg": "1,099,511,627,776 bytes; an image has up to 64,000,000",
    }


def test_a_link_out_of_a_class_is_not_followed_to_tell_whether_the_source_has_changed(tmp_path):
    states = hangs_on(hostile.traps(tmp_path / "source"), {})["states"]

    beside = {"cat/loop", "cat/everything"}
    assert {name for name, *_ in states} == {".", "cat", "dog", "cat/directory.jpg", *beside}


def test_a_pipe_in_the_place_of_an_archive_or_of_the_source_ends_the_build_at_once(tmp_path):
    for folder in ("a", "b", "c"):
        ilsvrc(tmp_path / folder)
    pipes = {
        "a/ILSVRC2012_img_train.tar": (1, "the source cannot be read"),
        "b/ILSVRC2012_devkit_t12.tar": (1, "no ILSVRC*_validation_ground_truth.txt"),
        "c/ILSVRC2012_img_val.tar": (1, "the source cannot be read"),
        "pipe": (2, "is no folder"),
    }

    for name, (code, what) in pipes.items():
        (tmp_path / name).unlink(missing_ok=True)
        os.mkfifo(tmp_path / name)
        ended = build(tmp_path, tmp_path / name.partition("/")[0], limit_mb=200)

        assert (ended.code, what in ended.said) == (code, True), ended.lines


def test_an_image_that_turned_into_a_pipe_after_it_was_listed_is_not_waited_for(tmp_path):
    source = folders(tmp_path / "source", {"cat": {"1.jpg": jpeg(1)}, "dog": {"2.jpg": jpeg(2)}})
    settings = BuildSettings(source=source, out=tmp_path / "set", image=SMALL, max_bad=MaxBad.parse("100%"))
    plan = plan_build(settings)
    (source / "cat" / "1.jpg").unlink()
    os.mkfifo(source / "cat" / "1.jpg")

    with within(60), pytest.raises(BadSource, match="changed or fails"):
        packed(plan, workers=1, on_progress=lambda *_: None)


@pytest.mark.parametrize("grows", [-1, 1])
def test_an_image_that_grew_or_shrank_after_it_was_listed_ends_the_build(tmp_path, grows):
    source = folders(tmp_path / "source", {"cat": {"1.jpg": jpeg(1)}, "dog": {"2.jpg": jpeg(2)}})
    settings = BuildSettings(source=source, out=tmp_path / "set", image=SMALL, max_bad=MaxBad.parse("100%"))
    plan = plan_build(settings)
    os.truncate(source / "cat" / "1.jpg", len(jpeg(1)) + grows)

    with pytest.raises(BadSource, match="bytes were listed"):
        packed(plan, workers=1, on_progress=lambda *_: None)


@pytest.mark.parametrize("place", ["beside", "train/cat/deep"])
def test_folders_nested_a_thousand_deep_end_in_one_line_or_do_not_matter(tmp_path, place):
    source = folders(tmp_path / "source", {"train/cat": {"1.jpg": jpeg(1)}})

    with deep_folder(source / place, 1200):
        ended = build(tmp_path, source, limit_mb=200)

    assert (ended.code, "nested too deeply" in ended.said) == ((0, False) if place == "beside" else (1, True))


_SHORT_OF_MEMORY = """
import resource, sys
from pathlib import Path
from alexshard.tools.packing.decode import BadImage, decode
data = Path(sys.argv[1]).read_bytes()
taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (taken + 30_000_000,) * 2)
try:
    decode(data)
except BadImage:
    print("refused")
except Exception as error:
    print(str(error).splitlines()[0])
"""


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "BMP"])
def test_want_of_memory_is_no_fault_of_the_image(tmp_path, kind):
    large = drawn.encoded(Image.new("RGB", (4000, 4000)), kind)
    (tmp_path / "image").write_bytes(large)

    said = run(sys.executable, "-c", _SHORT_OF_MEMORY, tmp_path / "image")

    assert said == "memory ran out while an image was decoded\n"


def test_a_flat_folder_of_many_images_is_a_wrong_call(tmp_path):
    source = folders(tmp_path / "source", {".": {"0.jpg": jpeg(1)}})
    for number in range(1, 5000):
        os.link(source / "0.jpg", source / f"{number}.jpg")

    ended = build(tmp_path, source, limit_mb=200)

    assert ended.code == 2
    assert "holds nothing that is known here" in ended.said


def test_class_folders_with_odd_names_are_packed_where_they_can_be_read(tmp_path):
    names = ("a b", "a;b", "CON", "-rf", "{0}%s", "a..", "x" * 250)
    source = folders(tmp_path / "source", {name: {"1.jpg": jpeg(1), "2.jpg": b""} for name in names})

    ended = build(tmp_path, source, "--max-bad", "50%", limit_mb=200)

    assert ended.code == 0, ended.lines
    assert len(ended.notes()) == len(ended.quarantine()) == len(names)


@pytest.mark.parametrize("name", ["\x1b[31mred", "two\nlines", "\udce9"])
def test_a_class_folder_whose_name_would_act_on_a_terminal_is_an_error_that_shows_it_safely(tmp_path, name):
    source = folders(tmp_path / "source", {"cat": {"1.jpg": jpeg(1)}, name: {"2.jpg": jpeg(2)}})

    ended = build(tmp_path, source, limit_mb=200)

    assert ended.code == 1
    assert "is no readable text" in ended.said


def test_names_that_meet_after_sanitising_get_their_keys_in_linear_time():
    names = [f"\u72ac/{chr(0x4E00 + number // 400)}{chr(0x4E00 + number % 400)}.jpg" for number in range(60_000)]

    with within(60):
        keys = unique_keys(names, [0] * len(names))

    assert (len({key.lower() for key in keys}), keys[:2]) == (len(names), ["_", "_-2"])


# --- development kits


@pytest.mark.parametrize("case", hostile.mats())
def test_a_table_of_synsets_that_claims_what_it_has_not_is_no_table(tmp_path, case):
    (tmp_path / "meta.mat").write_bytes(hostile.mats()[case])

    with within(60), pytest.raises(BadSource, match=r"^meta\.mat is no table of synsets: .+") as caught:
        read_devkit(tmp_path, ())

    assert caught.value.exit_code == 1


@pytest.mark.parametrize(
    ("name", "data", "what"),
    [
        ("kit/data/meta.mat", hostile.mats()["rows-without-number"], "is no table of synsets: 1,073,741,824 rows"),
        ("kit/data/meta.mat", hostile.mats()["deeper"], "is no table of synsets"),
        ("kit/data/ILSVRC2012_validation_ground_truth.txt", b"1\n" * 50_000_000, "it has 100,000,000 bytes"),
        ("kit/data/ILSVRC2012_validation_ground_truth.txt", b"9" * 3_000_000, "is no list of devkit ids"),
        ("kit/data/ILSVRC2012_validation_ground_truth.txt", b"x" * 3_000_000, "is no list of devkit ids"),
        ("kit/data/bomb", bytes(260_000_000), "inflates to more than a development kit has"),
    ],
    ids=["rows", "deep", "truth of 100 MB", "truth of digits", "truth of text", "bomb"],
)
def test_a_development_kit_that_is_a_bomb_ends_the_build_in_one_line(tmp_path, name, data, what):
    source = ilsvrc(tmp_path / "source")
    kit = {"kit/data/meta.mat": meta_mat({"n00000001": 1}), name: data}
    (source / "ILSVRC2012_devkit_t12.tar").unlink()
    (source / "ILSVRC2012_devkit_t12.tar.gz").write_bytes(hostile_images.gzipped(tar_bytes(kit.items())))

    ended = build(tmp_path, source, limit_mb=900)

    assert ended.code == 1
    assert what in ended.said
