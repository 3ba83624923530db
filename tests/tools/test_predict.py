"""`alextrain predict`: any image to named classes, by the way that evaluation goes; all of the images or none."""

from __future__ import annotations

import dataclasses
import io
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from alexshard.shards import ClassEntry, ShardFiles, ShardSet, read_rows
from alexshard.tools import predict_picture
from alexshard.tools.predict import Preparation, predict, square
from alexshard.tools.predict_command import predict_command
from alexshard.tools.predict_picture import BAR, BLUE, GAP, MARGIN, PER_ROW, PINK, SIDE, TRACK, Panel, draw_panels
from alexshard.tools.terminal import Cli
from alexshard.trainer import Machine, RunFolder, build_network, evaluation_loader, load_checkpoint
from click.testing import CliRunner
from PIL import Image

from tests.conftest import alexshard, run
from tests.tools import drawn, hostile_images
from tests.tools.drawn import folders

cli = Cli("alextrain", commands={"predict": predict_command})


def predicted(*arguments):
    return CliRunner().invoke(cli, ["predict", *map(str, arguments)])


def answers(*arguments):
    """The images of the JSON that the command prints."""
    done = predicted(*arguments, "--json")
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout)["images"]


@pytest.fixture(scope="module")
def home(sample_source, tmp_path_factory) -> Path:
    """The drawn classes at 74×74 in raw/ and jpeg/, a run that has learnt something of them in run/."""
    home = tmp_path_factory.mktemp("home")
    for form in ("raw", "jpeg"):
        run(*alexshard("build", sample_source, "--out", home / form, "--size", 74, "--format", form))
    learning = ("--epochs", 8, "--constant-rate", "--no-dropout", "--init-fan-in", "--width", 0.125, "-b", 32)
    command = [sys.executable, "-m", "alexshard.tools.cli_alextrain", "run", "--shards", home / "raw"]
    run(*command, "--out", home / "run", *learning, "--threads", 1, "--eval-every", 0)
    return home


@pytest.fixture(scope="module")
def files(home) -> list[Path]:
    """The validation images as PNGs of the same pixels, in stored order."""
    return stored_as_files(ShardSet.open(home / "raw"), home / "png", "png")


def stored_as_files(shard_set: ShardSet, folder: Path, suffix: str) -> list[Path]:
    """Every validation image as a file: the stored bytes, or a PNG of their pixels."""
    folder.mkdir()
    index = shard_set.index("val")
    names = []
    with ShardFiles(index, shard_set.shelf) as stored:
        for position, key in enumerate(index.keys):
            names.append(folder / f"{key}.{suffix}")
            data = bytes(stored.bytes_of(position))
            if suffix == "png":
                Image.open(io.BytesIO(data)).save(names[-1])
            else:
                names[-1].write_bytes(data)
    return names


def by_label(prediction) -> list[float]:
    return [guess.probability for guess in sorted(prediction.top, key=lambda guess: guess.label)]


def evaluated(checkpoint, shard_set, views) -> np.ndarray:
    """Probabilities of every validation image as the loader of evaluation prepares it, (N, classes)."""
    network = network_of(checkpoint)
    found = []
    machine = Machine.choose("cpu", threads=1)
    with (
        evaluation_loader(checkpoint.recipe, shard_set, "val", machine, views=views) as loader,
        torch.inference_mode(),
    ):
        for batch in loader:
            images = batch.images if views == 10 else batch.images[:, None]
            chances = torch.stack([network(view).double().softmax(1) for view in images.unbind(1)])
            found.append(chances.mean(0))
    return torch.cat(found).numpy()


def network_of(checkpoint):
    network = build_network(
        checkpoint.recipe, checkpoint.num_classes, checkpoint.side, Machine.choose("cpu").devices
    )
    checkpoint.put_into(network)
    return network.eval()


def of_recipe(checkpoint, **fields):
    return dataclasses.replace(checkpoint, recipe=dataclasses.replace(checkpoint.recipe, **fields))


MEANS = [("image", "centre"), ("image", "own"), ("channel", "centre")]


@pytest.mark.parametrize("views", [1, 10])
@pytest.mark.parametrize(("mean", "mean_crop"), MEANS)
def test_stored_images_as_files_get_the_probabilities_of_evaluation(home, files, mean, mean_crop, views):
    shard_set = ShardSet.open(home / "raw")
    checkpoint = of_recipe(load_checkpoint(home / "run"), mean=mean, mean_crop=mean_crop)
    classes = [ClassEntry(*pair, None) for pair in checkpoint.classes]
    expected = evaluated(checkpoint, shard_set, views)

    found = predict(network_of(checkpoint), files, Preparation.of(checkpoint, views), classes, top=10)
    assert [each.file for each in found] == files
    assert np.abs(np.array([by_label(each) for each in found]) - expected).max() < 1e-5
    assert expected.std(0).max() > 0.05  # images are told apart: a constant would agree with anything


def test_the_means_and_the_views_are_told_apart_by_the_network(home, files):
    """What makes the test above one that can fail."""
    found = []
    for mean, mean_crop in MEANS:
        checkpoint = of_recipe(load_checkpoint(home / "run"), mean=mean, mean_crop=mean_crop)
        classes = [ClassEntry(*pair, None) for pair in checkpoint.classes]
        for views in (1, 10):
            every = predict(network_of(checkpoint), files, Preparation.of(checkpoint, views), classes, top=10)
            found.append(np.array([by_label(each) for each in every]))

    far = [np.abs(one - other).max() for at, one in enumerate(found) for other in found[:at]]
    assert sorted(far)[0] == 0  # centre and own are one for the central view
    assert sorted(far)[1] > 1e-4


def test_stored_jpegs_as_files_get_the_probabilities_of_evaluation_too(home):
    shard_set = ShardSet.open(home / "jpeg")
    names = stored_as_files(shard_set, home / "jpg", "jpg")
    expected = evaluated(load_checkpoint(home / "run"), shard_set, 1)

    found = answers(home / "run", *names, "--top", 10)
    by_path = [[guess["probability"] for guess in sorted(each["top"], key=lambda g: g["label"])] for each in found]
    assert np.abs(np.array(by_path) - expected).max() < 1e-5


def test_images_of_every_kind_become_the_squares_that_packing_stores(tmp_path):
    sound = hostile_images.photographs()
    portrait = Image.fromarray(drawn.pixels(11, 90, 60))
    turned = portrait.getexif()
    turned[0x0112] = 6
    sound["jpeg-turned"] = drawn.encoded(portrait, "JPEG", exif=turned)
    sound["webp-large"] = drawn.encoded(Image.fromarray(drawn.pixels(12, 500, 400)), "WEBP")
    folders(tmp_path / "source", {"train/a": {f"{name}.JPEG": data for name, data in sound.items()}})
    drawn.pack(tmp_path / "source", tmp_path / "set", image=drawn.SMALL_RAW)
    shard_set = ShardSet.open(tmp_path / "set")
    index = shard_set.index("train")
    originals = {row.key: Path(row.original).name for row in read_rows(tmp_path / "set" / "samples.tsv")}

    assert sorted(originals.values()) == sorted(f"{name}.JPEG" for name in sound)
    with ShardFiles(index, shard_set.shelf) as stored:
        for position, key in enumerate(index.keys):
            data = bytes(stored.bytes_of(position))
            packed = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
            assert np.array_equal(square(tmp_path / "source/train/a" / originals[key], 32), packed), originals[key]


def test_each_image_is_told_by_its_path_and_five_aligned_lines(home, files):
    found = answers(home / "run", *files[:2])
    done = predicted(home / "run", *files[:2])
    lines = done.stdout.splitlines()

    assert done.stderr == ""
    assert (lines[0], lines[6], len(lines)) == (str(files[0]), str(files[1]), 12)
    for number, each in enumerate(found):
        for guess, line in zip(each["top"], lines[6 * number + 1 :], strict=False):
            share, synset, words = line.strip().split("  ")
            assert share == f"{100 * guess['probability']:.1f} %"
            assert (synset, words) == (guess["synset"], guess["words"])
    columns = {line.index("  n") for line in lines if line.startswith("  ")}
    assert len(columns) == 1


def test_the_json_names_run_step_views_and_classes(home, files):
    done = predicted(home / "run", files[3], "--json", "--views", 10, "--top", 3)
    found = json.loads(done.stdout)
    checkpoint = load_checkpoint(home / "run")

    assert found.keys() == {"schema", "run", "step", "views", "images", "picture"}
    assert found["picture"] is None
    assert (found["schema"], found["run"], found["step"], found["views"]) == (1, str(home / "run"), 40, 10)
    (image,) = found["images"]
    assert (image["path"], len(image["top"])) == (str(files[3]), 3)
    assert image["top"][0].keys() == {"label", "synset", "words", "probability"}
    for guess in image["top"]:
        assert (guess["synset"], guess["words"]) == checkpoint.classes[guess["label"]]
    shares = [guess["probability"] for guess in image["top"]]
    assert shares == sorted(shares, reverse=True)


def test_no_more_classes_are_told_than_there_are_and_they_add_up_to_one(home, files):
    (image,) = answers(home / "run", files[0], "--top", 99)

    assert sorted(guess["label"] for guess in image["top"]) == list(range(10))
    assert sum(guess["probability"] for guess in image["top"]) == pytest.approx(1)


def test_many_images_are_told_in_order_as_each_alone_and_progress_on_stderr(home, files):
    many = [*files, *reversed(files)] * 5  # 400: several batches, the last one not full
    done = predicted(home / "run", *many, "--json")
    together = json.loads(done.stdout)["images"]
    alone = {file: answers(home / "run", file)[0] for file in files[:6]}

    assert [each["path"] for each in together] == list(map(str, many))
    for each in together:
        if (expected := alone.get(Path(each["path"]))) is not None:
            assert [guess["label"] for guess in each["top"]] == [guess["label"] for guess in expected["top"]]
            for one, other in zip(each["top"], expected["top"], strict=True):
                assert one["probability"] == pytest.approx(other["probability"], abs=1e-5)
    assert done.stderr.splitlines()[-1].startswith("predict 400/400 images")


def test_batches_are_bounded_whatever_the_number_of_images_and_views(home, files):
    checkpoint = load_checkpoint(home / "run")
    network, seen = network_of(checkpoint), []
    network.register_forward_pre_hook(lambda _, images: seen.append(len(images[0])))
    classes = [ClassEntry(*pair, None) for pair in checkpoint.classes]
    for views in (1, 10):
        predict(network, files * 5, Preparation.of(checkpoint, views), classes, top=1)

    assert seen[:2] == [128, 72]
    assert sum(seen) == 200 + 2000
    assert max(seen) <= 128


class Undecided(torch.nn.Module):
    """Two halves of a thousand classes, the second more probable."""

    def forward(self, images):
        return (torch.arange(1000) >= 500).float().expand(len(images), 1000)


def test_equally_probable_classes_come_by_label(home, files):
    classes = [ClassEntry(f"n{label:08d}", "word", None) for label in range(1000)]
    preparation = Preparation.of(load_checkpoint(home / "run"), 1)

    (found,) = predict(Undecided(), files[:1], preparation, classes, top=502)
    assert [guess.label for guess in found.top] == [*range(500, 1000), 0, 1]
    assert found.top[0].probability == pytest.approx(np.e / (500 + 500 * np.e))


def test_a_checkpoint_file_serves_as_its_run_does(home, files):
    newest = sorted((home / "run" / "checkpoints").glob("step-*.pt"))[-1]

    assert answers(newest, files[0]) == answers(home / "run", files[0])


def test_best_is_the_network_of_the_best_validation(home, files, monkeypatch):
    asked = []
    monkeypatch.setattr(RunFolder, "load", lambda _, **options: asked.append(options["best"]) or newest)
    newest = load_checkpoint(next((home / "run" / "checkpoints").glob("step-*.pt")))
    predicted(home / "run", files[0], "--best")
    predicted(home / "run", files[0])

    assert asked == [True, False]


def bad_images(folder: Path) -> dict[str, tuple[int, str]]:
    """Files that are no images, with exit code and a part of the message."""
    (folder / "text.jpg").write_text("<html>not found</html>")
    (folder / "empty.png").write_bytes(b"")
    (folder / "cut.JPEG").write_bytes(drawn.jpeg(1, 300, 200)[:-400])
    whole = drawn.encoded(Image.fromarray(drawn.pixels(2, 300, 200)), "PNG")
    (folder / "cut.png").write_bytes(whole[: len(whole) // 2])
    (folder / "bomb.jpg").write_bytes(hostile_images.claiming(drawn.jpeg(3), 65500, 65500))
    (folder / "large.jpg").write_bytes(b"")
    os.truncate(folder / "large.jpg", 64_000_001)
    (folder / "folder").mkdir()
    os.mkfifo(folder / "pipe")
    (folder / "loop").symlink_to("loop")
    return {
        "text.jpg": (1, "no image: begins with b'<html>not fo'"),
        "empty.png": (1, "empty: no bytes"),
        "cut.JPEG": (1, "damaged JPEG"),
        "cut.png": (1, "cannot be decoded"),
        "bomb.jpg": (1, "claims 65500×65500 pixels"),
        "large.jpg": (1, "more than 64,000,000 bytes"),
        "missing.jpg": (2, "there is no image"),
        "*.webp": (2, "the shell found none"),
        "text.jpg/x.jpg": (2, "there is no image"),
        "folder": (2, "is a folder"),
        "pipe": (2, "is no regular file"),
        "loop": (1, "cannot be read"),
    }


def test_what_is_no_image_is_named_before_the_network_is_loaded_and_nothing_is_predicted(
    home, files, tmp_path, monkeypatch
):
    loaded = []
    monkeypatch.setattr("alexshard.trainer.load_checkpoint", lambda *_, **__: loaded.append(1))
    for name, (code, message) in bad_images(tmp_path).items():
        done = predicted(home / "run", files[0], tmp_path / name, files[1])

        assert done.exit_code == code, name
        assert done.stdout == ""
        assert done.stderr.startswith("error: ")
        assert done.stderr.count("error:") == 1
        assert str(tmp_path / name) in done.stderr.splitlines()[0]
        assert message in done.stderr, done.stderr
        assert "what to do: " in done.stderr
    assert loaded == []


def test_a_folder_is_refused_with_the_pattern_for_its_files(home, tmp_path):
    (tmp_path / "two words").mkdir()
    done = predicted(home / "run", tmp_path / "two words")

    assert f"what to do: let the shell name them: '{tmp_path}/two words'/*" in done.stderr


def test_an_image_that_is_damaged_after_the_check_ends_it_without_a_result(home, files, tmp_path, monkeypatch):
    monkeypatch.setattr("alexshard.tools.predict.check_images", lambda _: None)
    bad_images(tmp_path)
    done = predicted(home / "run", *files, tmp_path / "cut.JPEG")

    assert (done.exit_code, done.stdout) == (1, "")
    assert f"error: {tmp_path / 'cut.JPEG'} cannot be read as an image: damaged JPEG" in done.stderr


def test_with_json_a_failure_is_json_too(home, tmp_path):
    done = predicted(home / "run", tmp_path / "none.jpg", "--json")
    told = json.loads(done.stdout)

    assert (done.exit_code, told["exit_code"]) == (2, 2)
    assert told["error"]["what"] == f"there is no image {tmp_path / 'none.jpg'}"


def test_outputs_that_are_no_numbers_are_no_answer(home, files):
    checkpoint = load_checkpoint(home / "run")
    network = network_of(checkpoint)
    torch.nn.init.constant_(network.fc8.bias, float("nan"))
    classes = [ClassEntry(*pair, None) for pair in checkpoint.classes]

    with pytest.raises(Exception, match="outputs of the network are not finite"):
        predict(network, files[:1], Preparation.of(checkpoint, 1), classes, top=5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--top", "0"), "0 is not in the range"),
        (("--views", "5"), "'5' is not one of"),
        (("--device", "cuda:77"), "the device cuda:77 is not there"),
        (("--label", "n01440764"), "--label colours a bar of the picture"),
        (("--picture", "x.jpg"), "does not end in .png"),
        (("--picture", "none/x.png"), "there is no folder none"),
        (("--picture", "."), "is a folder"),
        (("--picture", "x.png", "--label", "no such thing"), "no class is called 'no such thing'"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_a_wrong_call_ends_with_2_and_leaves_no_picture(home, files, tmp_path, monkeypatch, options, message):
    monkeypatch.chdir(tmp_path)
    done = predicted(home / "run", files[0], *options)

    assert (done.exit_code, done.stdout) == (2, "")
    assert message in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_run_that_is_not_there_and_a_call_without_images_are_wrong_calls(home, files):
    assert predicted(home / "none", files[0]).exit_code == 2
    assert predicted(home / "run").exit_code == 2


def test_a_picture_never_takes_the_place_of_an_image(home, files, tmp_path):
    data = files[0].read_bytes()
    own = tmp_path / "own.png"
    own.write_bytes(data)
    (tmp_path / "alias.png").symlink_to(own)
    for picture in (own, tmp_path / "alias.png"):
        done = predicted(home / "run", own, "--picture", picture)

        assert done.exit_code == 2
        assert "is one of the images" in done.stderr
        assert own.read_bytes() == data


def test_a_picture_of_more_images_than_one_holds_is_refused(home, files, tmp_path):
    done = predicted(home / "run", *(files * 3), "--picture", tmp_path / "x.png")

    assert done.exit_code == 2
    assert "a picture of 120 images" in done.stderr


# --- the picture

TOP = SIDE + 2 * predict_picture._TITLE_GAP + predict_picture._TITLE.height  # of the bars, in a panel


def bar_at(sheet: np.ndarray, left: int, top: int, place: int) -> np.ndarray:
    """The lowest row of pixels of a bar, which no letter of a name reaches, from 0 to 1."""
    y = top + TOP + place * predict_picture.STEP + BAR - 1
    return sheet[y, left : left + SIDE]


def length_and_colour(row: np.ndarray) -> tuple[int, tuple[int, ...]]:
    length = int((row != TRACK).any(axis=1).sum())
    assert (row[length:] == TRACK).all()
    assert (row[:length] == row[0]).all()
    return length, tuple(row[0].tolist())


def place_of(number: int, bars: int = 5) -> tuple[int, int]:
    row, column = divmod(number, PER_ROW)
    height = TOP + bars * predict_picture.STEP + predict_picture._AXIS + predict_picture.ROW_GAP
    return MARGIN + column * (SIDE + GAP), MARGIN + row * height


def test_eight_images_are_two_rows_of_four_with_bars_as_long_as_probable(home, files, tmp_path):
    chosen = files[:8]
    done = predicted(home / "run", *chosen, "--picture", tmp_path / "x.png", "--json", "--label", "3")
    found = json.loads(done.stdout)["images"]
    assert json.loads(done.stdout)["picture"] == str(tmp_path / "x.png")
    with Image.open(tmp_path / "x.png") as picture:
        sheet, told = np.asarray(picture), picture.text["Description"].split("\n")

    assert done.stderr == f"the picture is in {tmp_path / 'x.png'}\n"
    assert sheet.shape[1] == 2 * MARGIN + 4 * SIDE + 3 * GAP
    assert [line.split(";")[0] for line in told] == list(map(str, chosen))
    seen = set()
    for number, each in enumerate(found):
        left, top = place_of(number)
        inside = sheet[top + 1 : top + SIDE - 1, left + 1 : left + SIDE - 1]
        assert np.array_equal(inside, square(chosen[number], SIDE)[1:-1, 1:-1])
        for place, guess in enumerate(each["top"]):
            length, colour = length_and_colour(bar_at(sheet, left, top, place))
            assert length == round(SIDE * guess["probability"])
            if length:
                assert colour == (PINK if guess["label"] == 3 else BLUE)
                seen.add(colour)
    assert seen == {PINK, BLUE}
    assert (sheet[:MARGIN] == 255).all()
    assert (sheet[-MARGIN:] == 255).all()
    assert (sheet[:, -MARGIN:] == 255).all()


def test_the_folder_an_image_lies_in_tells_its_class_where_the_network_knows_it(home, files, tmp_path):
    (first,) = answers(home / "run", files[0], "--top", 1)
    synset = first["top"][0]["synset"]
    for name in (synset, "n99999999"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "x.png").write_bytes(files[0].read_bytes())
        assert (
            predicted(home / "run", tmp_path / name / "x.png", "--picture", tmp_path / f"{name}.png").exit_code
            == 0
        )
    known, unknown = (np.asarray(Image.open(tmp_path / f"{name}.png")) for name in (synset, "n99999999"))

    assert length_and_colour(bar_at(known, MARGIN, MARGIN, 0))[1] == PINK
    assert length_and_colour(bar_at(unknown, MARGIN, MARGIN, 0))[1] == BLUE


@pytest.mark.parametrize("name", ["synset", "first word", "number"])
def test_the_label_may_be_given_as_synset_word_or_number(home, files, tmp_path, name):
    (found,) = answers(home / "run", files[0], "--top", 1)
    guess = found["top"][0]
    label = {"synset": guess["synset"], "first word": guess["words"].split(",")[0], "number": guess["label"]}[name]
    done = predicted(home / "run", files[0], "--picture", tmp_path / "x.png", "--label", label, "--top", 1)

    sheet = np.asarray(Image.open(tmp_path / "x.png"))
    assert len(done.stdout.splitlines()) == 2
    assert length_and_colour(bar_at(sheet, MARGIN, MARGIN, 0))[1] == PINK
    # Five bars whatever --top says.
    assert length_and_colour(bar_at(sheet, MARGIN, MARGIN, 4))[1] in (BLUE, TRACK)


def panel(title: str, known: bool) -> Panel:
    return Panel(np.zeros((SIDE, SIDE, 3), np.uint8), title, known, (), None)


def test_a_title_is_dark_where_it_is_the_class_and_pale_where_it_is_the_file():
    darkest = []
    for known in (True, False):
        sheet = np.asarray(draw_panels([panel("tench", known)]))
        darkest.append(int(sheet[MARGIN + SIDE : MARGIN + TOP, MARGIN : MARGIN + SIDE].min()))

    assert darkest == [min(predict_picture.INK), min(predict_picture.PALE)]


def test_names_too_long_or_of_any_script_stay_in_their_panel():
    sheet = np.asarray(draw_panels([panel("an endless name " * 40, True), panel("犬 ασδ \x1b[31m", False)]))

    assert (sheet[:, MARGIN + SIDE : MARGIN + SIDE + GAP] == 255).all()
    assert (sheet[:, MARGIN + 2 * SIDE + GAP :] == 255).all()


def test_a_picture_that_cannot_be_written_leaves_no_result_and_no_file(home, files, tmp_path, monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", full)
    done = predicted(home / "run", files[0], "--picture", tmp_path / "x.png")

    assert (done.exit_code, done.stdout) == (1, "")
    assert "No space left on device" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_the_preset_table_of_recipes_fits_100_columns_and_keeps_every_word():
    from alexshard.tools.recipes import ABOUT, listed, text

    found = listed(None, width=1.0, device="cpu", measure=False)
    for each in found["presets"]:
        each |= {"hours": 24 * 365.5, "images_per_s": {"median": 8.0, "least": 7.9, "most": 8.1, "n": 3}}
    printed = text(found)

    assert max(map(len, printed.splitlines())) <= 100
    assert all(word in printed for about, _ in ABOUT.values() for word in about.split())


def test_neither_the_command_nor_the_look_at_the_images_imports_torch(files):
    code = (
        "import sys, pathlib, alexshard.tools.predict_command, alexshard.tools.filters_command\n"
        "from alexshard.tools.predict import check_images\n"
        "import alexshard.tools.predict_picture\n"
        "check_images([pathlib.Path(sys.argv[1])])\n"
        "print('torch' in sys.modules)"
    )

    assert run(sys.executable, "-c", code, files[0]) == "False\n"


def test_the_help_is_there_without_torch():
    code = "from alexshard.tools.predict_command import predict_command; predict_command(['--help'])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert "IMAGE…" in done.stdout
    assert "figure 4" in done.stdout
