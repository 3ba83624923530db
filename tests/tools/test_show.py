"""`alexshard show` draws a contact sheet: the right pictures, in their colours, with their names."""

from __future__ import annotations

import io
import json
import shutil
import subprocess
import sys
import tarfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from alexshard.pipeline import PAPER, Loader, draw, epoch_order
from alexshard.pipeline.reference import decoded, jitter_of, training_images
from alexshard.shards import ClassEntry, ShardFiles, ShardSet, WrongCall
from alexshard.tools import lettering
from alexshard.tools.lettering import Lettering
from alexshard.tools.sheet import TILE, layout_of
from alexshard.tools.show import EPOCHS_SHOWN, find_label
from PIL import Image

from tests.conftest import alexshard, run


class Sheet:
    """A sheet as drawn by the command."""

    def __init__(self, shard_set: Path, out: Path, *options: object, header_lines: int = 2) -> None:
        assert run(*alexshard("show", shard_set, "--out", out, *options)) == f"{out}\n"
        with Image.open(out) as picture:
            picture.load()
            self.image = picture
        lines = self.image.text["Description"].split("\n")
        self.header, named = lines[:header_lines], lines[header_lines:]
        self.keys = [line.split(": ")[0] for line in named]
        self.names = [line.split(": ")[1] for line in named]

    def tile(self, group: int, place: int = 0, *, of: int = 1, side: int = TILE) -> np.ndarray:
        """The pixels of one tile as they stand on the sheet."""
        x, y = layout_of(len(self.keys), of, len(self.header)).place(group, place)
        return np.asarray(self.image.crop((x, y, x + side, y + side)), np.float64)


@pytest.fixture(scope="module")
def sheet(sample_set, tmp_path_factory):
    return Sheet(sample_set, tmp_path_factory.mktemp("show") / "sheet.png", "-n", 30)


def members(shard_set: Path, split: str) -> dict[str, bytes]:
    """Every member of a split's tars, read by tarfile."""
    found = {}
    for path in sorted(shard_set.glob(f"{split}-*.tar")):
        with tarfile.open(path) as tar:
            found |= {member.name: tar.extractfile(member).read() for member in tar}
    return found


def test_each_tile_is_the_picture_of_its_key_in_its_colours(sheet, sample_set):
    stored = members(sample_set, "train")

    assert len(sheet.keys) == len(set(sheet.keys)) == 30
    for number, key in enumerate(sheet.keys):
        picture = Image.open(io.BytesIO(stored[f"{key}.jpg"])).resize((TILE, TILE), Image.Resampling.LANCZOS)
        assert np.abs(sheet.tile(number) - np.asarray(picture, np.float64)).max() == 0


def test_each_name_is_that_of_the_label_in_the_tar(sheet, sample_set):
    stored = members(sample_set, "train")
    classes = json.loads((sample_set / "manifest.json").read_text(encoding="utf-8"))["classes"]
    labels = [int(stored[f"{key}.cls"]) for key in sheet.keys]

    expected = [
        f"{classes[label]['words'].split(',')[0]}, label {label} · {classes[label]['synset']}" for label in labels
    ]
    assert sheet.names == expected
    assert labels == sorted(labels)
    assert len(set(labels)) > 5


def test_the_choice_depends_on_the_seed_alone(sheet, sample_set, tmp_path):
    again = Sheet(sample_set, tmp_path / "again.png", "-n", 30)
    other = Sheet(sample_set, tmp_path / "other.png", "-n", 30, "--seed", 1)

    assert (again.keys, again.image.tobytes()) == (sheet.keys, sheet.image.tobytes())
    assert set(other.keys) != set(sheet.keys)


def test_a_smaller_number_is_part_of_a_larger_one_and_all_are_shown_where_there_are_fewer(
    sheet, sample_set, tmp_path
):
    some = Sheet(sample_set, tmp_path / "some.png", "-n", 7)
    every = Sheet(sample_set, tmp_path / "every.png", "--split", "val", "-n", 1000)

    assert len(some.keys) == 7
    assert set(some.keys) < set(sheet.keys)
    assert every.header[0].endswith("val · 40 of 40 samples · seed 0")
    assert sorted(every.keys) == sorted(name[:-4] for name in members(sample_set, "val") if name.endswith(".jpg"))


def test_every_class_is_shown_as_often_as_any_other(sheet, sample_set, tmp_path):
    default = Sheet(sample_set, tmp_path / "default.png")
    labels = Counter(name.split("label ")[1].split()[0] for name in default.names)

    assert sorted(labels) == [str(label) for label in range(10)]
    assert sorted(labels.values()) == [6] * 6 + [7] * 4
    assert set(Counter(sheet.names).values()) == {3}


def test_a_label_chooses_its_class_alone(sample_set, tmp_path):
    only = Sheet(sample_set, tmp_path / "only.png", "--label", "3")
    stored = members(sample_set, "train")

    assert sorted(only.keys) == sorted(name[:-4] for name, data in stored.items() if data == b"3")


def test_beside_each_picture_stands_what_the_reference_gives_for_the_epochs_of_the_run(raw_sample_set, tmp_path):
    drawn = Sheet(raw_sample_set, tmp_path / "augmented.png", "-n", 3, "--seed", 7, "--augmented", header_lines=4)
    shard_set = ShardSet.open(raw_sample_set)
    index, statistics = shard_set.index("train"), shard_set.manifest.statistics
    mean = np.broadcast_to(np.array(statistics.channel_mean), (256, 256, 3))
    small = round(224 * TILE / 256)
    differences, mirrored = [], 0
    with ShardFiles(index, shard_set.shelf) as stored:
        for number, key in enumerate(drawn.keys):
            at = index.keys.index(key)
            for epoch in range(EPOCHS_SHOWN):
                place = int(np.flatnonzero(epoch_order([len(index)], seed=7, epoch=epoch).samples == at)[0])
                draws = draw(PAPER, seed=7, epoch=epoch, start=place, stop=place + 1, slack=32)
                mirrored += int(draws.mirror[0])
                jitter = jitter_of(
                    draws.normals, PAPER, np.array(statistics.eigenvalues), np.array(statistics.eigenvectors)
                )
                image = training_images(
                    decoded(stored.bytes_of(at), "ppm")[None],
                    draws,
                    side=224,
                    mean_HWC=mean,
                    jitter_N3=jitter,
                    augmentation=PAPER,
                )[0].transpose(1, 2, 0)
                pixels = np.clip(np.round(image + mean[:224, :224]), 0, 255).astype(np.uint8)
                wanted = Image.fromarray(pixels).resize((small, small), Image.Resampling.LANCZOS)
                tile = drawn.tile(number, 1 + epoch, of=1 + EPOCHS_SHOWN, side=small)
                differences.append(np.abs(tile - np.asarray(wanted, np.float64)).max())

    assert drawn.header[3].startswith("y, x: how many pixels ")
    assert "colour: what was added to its red, green and blue" in drawn.header[3]
    assert len(differences) == 15
    assert max(differences) <= 1  # a value on the edge between two levels may round either way
    assert 0 < mirrored < 15


def test_the_loader_that_is_asked_sample_by_sample_gives_what_a_run_in_batches_gives(raw_sample_set):
    with Loader(raw_sample_set, batch_size=16, seed=7, mean="channel") as batches:
        wanted = next(iter(batches))
    with Loader(raw_sample_set, batch_size=1, seed=7, mean="channel") as singles:
        singles.load_state_dict({**singles.state_dict(), "position": 11})
        one = next(iter(singles))

    assert one.keys == wanted.keys[11:12]
    assert (one.images[0] == wanted.images[11]).all()


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--split", "dev"], ["no split 'dev'", "train, val, test"]),
        (["--label", "10"], ["no label 10", "0 to 9"]),
        (["--label", "stripped disk"], ["no class is called 'stripped disk'", "n90010423 (striped disc)"]),
        (["--label", "qqqq"], ["no class is called 'qqqq'", "what to do: alexshard info {set} --classes lists"]),
        (["--label", "9" * 5000], ["the set has 0 to 9"]),
        (["-n", "0"], ["0 is not in the range"]),
        (["-n", "501", "--augmented"], ["-n 501 is more", "-n 500 or fewer"]),
        (["--out", "."], [" is a folder", "name.png"]),
        (["--out", "absent/sheet.png"], ["there is no folder absent", "mkdir -p absent"]),
        (["--out", "my sets/a.png"], ["there is no folder my sets", "mkdir -p 'my sets'"]),
        (["--out", "my sheet"], ["does not end in .png", "--out 'my sheet.png'"]),
        (["--out", "sheet.jpg"], ["does not end in .png", "--out sheet.png"]),
    ],
)
def test_a_wrong_call_is_told_with_its_remedy_and_writes_nothing(sample_set, tmp_path, options, told):
    done = subprocess.run(
        alexshard("show", sample_set, *options), cwd=tmp_path, capture_output=True, text=True, check=False
    )

    assert done.returncode == 2
    assert done.stdout == ""
    assert all(words.format(set=sample_set) in done.stderr for words in told), done.stderr
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("command", [["show", "--out", "/proc/sheet.png"], ["info", "--html", "/proc/page.html"]])
def test_a_folder_that_takes_no_file_is_told_with_a_remedy(sample_set, command):
    name, option, out = command
    done = subprocess.run(alexshard(name, sample_set, option, out), capture_output=True, text=True, check=False)

    assert (done.returncode, done.stdout) == (1, "")
    assert f"error: {option} {out} cannot be written: " in done.stderr
    assert "where: /proc\n" in done.stderr
    assert f"what to do: {option} with a file in a folder that you may write to" in done.stderr


def test_a_picture_that_cannot_be_decoded_is_named_and_nothing_is_written(sample_set, tmp_path):
    copy = shutil.copytree(sample_set, tmp_path / "set")
    index = ShardSet.open(copy).index("val")
    with (copy / index.shards[0].name).open("r+b") as file:
        file.seek(int(index.offset[0]))
        file.write(b"\0" * 64)
    done = subprocess.run(
        alexshard("show", copy, "--split", "val"), cwd=tmp_path, capture_output=True, text=True, check=False
    )

    assert done.returncode == 1
    assert f"sample {index.keys[0]} cannot be decoded" in done.stderr
    assert f"at byte {int(index.offset[0]):,}" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["set"]


CLASSES = [
    ClassEntry("n02012849", "crane", 1),
    ClassEntry("n03126707", "crane", 2),
    ClassEntry("n01440764", "tench, Tinca tinca", 3),
    ClassEntry("1", "1", None),
    ClassEntry("犬", "犬", None),
]


@pytest.mark.parametrize(
    ("text", "label"),
    [("n01440764", 2), ("tinca TINCA", 2), ("tench, Tinca tinca", 2), ("0", 0), ("1", 3), ("犬", 4)],
)
def test_a_class_is_found_by_synset_word_number_or_folder(text, label):
    assert find_label(Path("set"), CLASSES, text) == label


def test_a_word_of_several_classes_is_refused_with_all_of_them():
    with pytest.raises(WrongCall, match=r"0 \(n02012849: crane\), 1 \(n03126707: crane\)"):
        find_label(Path("set"), CLASSES, "crane")


def test_the_remedy_of_an_unknown_label_can_be_pasted():
    with pytest.raises(WrongCall, match=r"alexshard info 'my sets/a' --classes lists all"):
        find_label(Path("my sets/a"), CLASSES, "qqqq")


def test_long_names_are_shortened_to_the_width_that_there_is():
    letters = Lettering(14)
    long = "a" * 400

    assert letters.fit("short", 160) == "short"
    assert letters.fit(long, 160).endswith("…")
    assert 120 < letters.width(letters.fit(long, 160)) <= 160


@pytest.mark.parametrize("fonts", ["of this machine", "none"])
def test_no_script_is_lost(monkeypatch, fonts):
    if fonts == "none":
        monkeypatch.setattr(lettering, "_system_fonts", list)
        lettering._system_font.cache_clear()
    letters = Lettering(14)
    fitted = letters.fit("犬 Ж plain", 400)
    lettering._system_font.cache_clear()

    assert fitted.endswith(" plain")
    assert fitted[0] == "犬" or fitted.startswith("\\u72ac")
    assert "Ж" in fitted or "\\u0416" in fitted
    assert fonts != "none" or fitted == "\\u72ac \\u0416 plain"


def test_pictures_as_packed_are_shown_without_torch(sample_set, tmp_path):
    script = (
        "import sys; from alexshard.tools.cli_alexshard import main\n"
        "main(sys.argv[1:], standalone_mode=False); print('torch' in sys.modules)"
    )
    out = run(sys.executable, "-c", script, "show", sample_set, "--out", tmp_path / "sheet.png")

    assert out.splitlines()[-1] == "False"
