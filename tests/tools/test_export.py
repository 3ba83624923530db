"""`alextrain export`: what is written answers as the trained network, also where alexshard is not installed."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import alexshard
import click
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from alexshard.shards import AlexshardError, ShardSet, WrongCall
from alexshard.tools import export as exporting
from alexshard.tools.export import FORMATS, appearing_folder, check_images, compare, logits_of_run
from alexshard.tools.export_command import FORMATS as OFFERED
from alexshard.tools.export_command import export_command
from alexshard.tools.model_card import is_published, model_card
from alexshard.tools.packing.decode import decode
from alexshard.tools.packing.image import central_square
from alexshard.tools.terminal import Cli
from alexshard.trainer import (
    FORMS,
    SCHEDULES,
    AlexNet,
    Checkpoint,
    Constants,
    Machine,
    Portable,
    Recipe,
    RunFolder,
    build_network,
    load_checkpoint,
    train,
    versions,
)
from click.testing import CliRunner
from PIL import Image

ROOT = Path(alexshard.__file__).resolve().parent
NEAR = 1e-5  # of the largest logit: what is measured is below 1e-6
BESIDE = {"README.md", "classes.json", "example.py", "preprocessing.json"}
# As on a machine without alexshard: whatever asks for it fails.
WITHOUT_ALEXSHARD = """
import runpy, sys
class Nowhere:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "alexshard":
            raise ModuleNotFoundError("alexshard is not installed here")
sys.meta_path.insert(0, Nowhere())
snippet, *sys.argv = sys.argv[1:]
sys.path.insert(0, ".")
sys.dont_write_bytecode = True
runpy.run_path(sys.argv[0], run_name="__main__")
print("snippet:")
runpy.run_path(snippet)
assert "alexshard" not in sys.modules
"""


@click.group(cls=Cli)
def main():
    pass


main.add_command(export_command)


def export(*arguments):
    return CliRunner().invoke(main, ("export", *map(str, arguments)))


def lively(recipe: Recipe) -> Recipe:
    """With first weights so large that logits differ from image to image and class to class."""
    return dataclasses.replace(
        recipe, width=0.125, init_std=(0.02, 0.1, 0.1, 0.1, 0.1, 0.2, 0.1, 0.1), conv6_std=0.1
    )


@pytest.fixture(scope="module")
def trained(sample_source, tmp_path_factory) -> Path:
    """The folder of a run of two epochs."""
    home = tmp_path_factory.mktemp("trained")
    build = (
        "alexshard.tools.cli_alexshard",
        "build",
        str(sample_source),
        "--size",
        "74",
        "--out",
        str(home / "set"),
    )
    subprocess.run([sys.executable, "-m", *build], check=True, capture_output=True)
    recipe = dataclasses.replace(Recipe.original(), width=0.125, batch_size=32, epochs=2)
    train(recipe, ShardSet.open(home / "set"), home / "run", Machine.choose("cpu", threads=1))
    return home / "run"


@pytest.fixture(scope="module")
def checkpoint(trained) -> Checkpoint:
    """Of that run, with the weights of `lively` in their place."""
    found = load_checkpoint(trained)
    recipe = lively(found.recipe)
    return dataclasses.replace(found, recipe=recipe, network=AlexNet(recipe, 10, 64).state_dict())


@pytest.fixture(scope="module")
def run(checkpoint, tmp_path_factory) -> Path:
    return saved(checkpoint, tmp_path_factory.mktemp("lively") / "run")


def saved(checkpoint: Checkpoint, folder: Path) -> Path:
    path = RunFolder(folder).checkpoint_of(checkpoint.step)
    path.parent.mkdir(parents=True)
    checkpoint.save(path)
    return folder


def fresh(recipe: Recipe) -> dict:
    """The optimiser of a network without momentum so far."""
    return {"momentum": {}, "rates": dict.fromkeys(recipe.schedule[0].rates, 0.01)}


@pytest.fixture(scope="module")
def exports(run) -> dict[str, dict]:
    """What the command says of each form that can be written, with --json."""
    return {to: succeeded(export(run, "--to", to, "--json")) for to in FORMS}


def succeeded(done):
    assert done.exit_code == 0, done.output
    assert done.stderr == ""
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> list[Path]:
    """Drawn images of every kind that packing converts: oblong, turned by EXIF, CMYK, alpha, 16 bits, grey."""
    folder = tmp_path_factory.mktemp("images")
    random = np.random.default_rng(5)

    def drawn(width, height, bands=3):
        blocks = random.integers(0, 256, (5, 5, bands), np.uint8)
        return Image.fromarray(blocks if bands > 1 else blocks[..., 0]).resize(
            (width, height), Image.Resampling.BICUBIC
        )

    turned = Image.Exif()
    turned[0x0112] = 6
    drawn(150, 100).save(folder / "oblong.png")
    drawn(80, 200).save(folder / "turned.jpg", quality=95, exif=turned, subsampling=0)
    drawn(90, 91).convert("CMYK").save(folder / "cmyk.jpg", quality=95)
    drawn(60, 70, 4).save(folder / "alpha.png")
    deep = np.asarray(drawn(99, 77, 1)).astype(np.uint16) * 256 + 255
    Image.fromarray(deep).save(folder / "deep.png")
    drawn(75, 74, 1).save(folder / "grey.webp", lossless=True)
    return sorted(folder.iterdir())


@pytest.fixture(scope="module")
def asked(exports, images, tmp_path_factory) -> dict[str, tuple[str, str]]:
    """What example.py and the model card's snippet print, where alexshard cannot be imported."""
    printed = {}
    wrapper = tmp_path_factory.mktemp("without") / "without_alexshard.py"
    wrapper.write_text(WITHOUT_ALEXSHARD)
    for to, told in exports.items():
        folder = Path(told["folder"])
        (snippet,) = re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.S)
        program = wrapper.with_name(f"{to}.py")
        program.write_text(snippet.replace("image.jpg", str(images[0])))
        command = [sys.executable, "-I", wrapper, program, folder / "example.py", *images]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        printed[to] = tuple(done.stdout.split("snippet:\n"))
    return printed


def own_answers(checkpoint, image) -> list[tuple[float, str]]:
    """Probability and synset of the five most probable classes, by packing's square and `AlexNet`."""
    found = decode(image.read_bytes())
    square = central_square(found.pixels_HWC, checkpoint.stored_side)[5:69, 5:69, :3]
    network = build_network(checkpoint.recipe, 10, 64, (torch.device("cpu"),)).eval()
    checkpoint.put_into(network)
    pixels = torch.from_numpy(square.transpose(2, 0, 1).astype(np.float32))
    with torch.no_grad():
        top = network((pixels - checkpoint.centre_mean())[None]).softmax(1)[0].topk(5)
    return [
        (value, checkpoint.classes[label][0])
        for value, label in zip(*(part.tolist() for part in top), strict=True)
    ]


# The two networks


PAPER = Recipe.paper()
VARIANTS = {
    "original": (Recipe.original(), 64),
    "paper": (PAPER, 64),
    "symmetric": (dataclasses.replace(Recipe.original(), conv1_pad="symmetric"), 64),
    "sixth": (dataclasses.replace(PAPER, conv6=True), 64),
    "no dropout": (dataclasses.replace(PAPER, dropout=False), 64),
    "other windows": (dataclasses.replace(Recipe.original(), lrn_n=3, lrn_k=1, same_map_n=3, same_map_k=2), 64),
    "a remainder in the last pooling": (Recipe.original(), 112),
}


@pytest.mark.parametrize("name", VARIANTS)
def test_the_portable_network_answers_as_the_one_that_trains(name):
    recipe, side = lively(VARIANTS[name][0]), VARIANTS[name][1]
    network = AlexNet(recipe, 10, side).eval()
    mean = 255 * torch.rand(3, side, side, generator=torch.Generator().manual_seed(2))
    portable = Portable(Constants.of(recipe), network.state_dict(), mean)
    batches = check_images(side)
    with torch.no_grad():
        wanted = [network(images - mean) for images in batches]
        found = [portable(images) for images in batches]

    assert [len(part) for part in found] == [1, 3]
    difference, largest = compare(wanted, found, "plain")
    assert float(wanted[1].std(0).min()) > 0.002 * largest  # they say something about the images
    assert difference < NEAR * largest


class AcrossTowers(Portable):
    """Lets LRN's windows reach from one tower into the other."""

    def _across_maps(self, x):
        how = self.constants
        return F.local_response_norm(x, how.lrn_n, how.lrn_n * how.lrn_a, how.beta, how.lrn_k)


class UncountedPadding(Portable):
    """Takes the mean over the pixels that are there, at the edge of a map."""

    def _same_map(self, x, a):
        n = self.constants.same_map_n
        sums = n * n * F.avg_pool2d(x * x, n, stride=1, padding=n // 2, count_include_pad=False)
        return x * (self.constants.same_map_k + a * sums).pow(-self.constants.beta)


WRONG = {
    "alpha not divided": (Portable, {"lrn_a": 1e-4}),
    "alpha divided twice": (Portable, {"lrn_a": 4e-6}),
    "k": (Portable, {"lrn_k": 1.0}),
    "window": (Portable, {"lrn_n": 3}),
    "order": (Portable, {"layer1_order": "relu-lrn-pool"}),
    "no second normaliser": (Portable, {"same_map_a": None}),
    "inverted dropout": (Portable, {"fc_scale": 1.0}),
    "torchvision's padding": (Portable, {"conv1_pad": "symmetric"}),
    "one tower": (AcrossTowers, {}),
    "mean of what is there": (UncountedPadding, {}),
}


@pytest.mark.parametrize("name", [*WRONG, "mean left out", "mean of BGR"])
def test_the_check_finds_a_network_that_does_one_thing_otherwise(checkpoint, name):
    kind, changed = WRONG.get(name, (Portable, {}))
    mean = checkpoint.centre_mean()
    mean = {"mean left out": torch.zeros_like(mean), "mean of BGR": mean.flip(0)}.get(name, mean)
    constants = dataclasses.replace(Constants.of(checkpoint.recipe), **changed)
    batches = check_images(64)
    wanted = logits_of_run(checkpoint, batches)
    with torch.no_grad():
        found = [kind(constants, checkpoint.network, mean)(images) for images in batches]

    with pytest.raises(AlexshardError, match="the plain export answers otherwise"):
        compare(wanted, found, "plain")


@pytest.mark.parametrize("name", VARIANTS)
def test_constants_survive_as_words(name):
    constants = Constants.of(VARIANTS[name][0])

    assert Constants.from_words({**constants.to_words(), "other": "words"}) == constants


# The forms


@pytest.mark.parametrize("to", FORMS)
def test_an_export_holds_network_card_example_classes_and_preprocessing(exports, checkpoint, run, to):
    told = exports[to]
    folder = run / "export" / to

    assert told["schema"] == 1
    assert Path(told["folder"]) == folder
    assert {path.name for path in folder.iterdir()} == set(told["files"]) == {*BESIDE, FORMS[to].file}
    assert told["files"] == {path.name: path.stat().st_size for path in folder.iterdir()}
    assert {path.stat().st_mode & 0o777 for path in folder.iterdir()} == {folder.stat().st_mode & 0o666}
    assert told["largest_difference"] < NEAR * told["largest_logit"]
    assert told["allowed"] == pytest.approx(1e-4 * told["largest_logit"])
    assert (told["images"], told["parameters"]) == (4, 328_170)
    assert set(FORMS[to].needs) <= set(told["versions"])
    classes = [(each["synset"], each["words"]) for each in json.loads((folder / "classes.json").read_text())]
    assert tuple(classes) == checkpoint.classes
    how = json.loads((folder / "preprocessing.json").read_text())
    assert (how["stored_side"], how["side"], how["colour_order"], how["value_range"]) == (74, 64, "RGB", [0, 255])
    assert how["resampling"] == "bicubic, shorter side to stored_side, central square"
    assert how["subtracted_by_network"] == "the central crop of the training images' mean image"


@pytest.mark.parametrize("to", FORMS)
def test_the_file_alone_answers_as_the_network_that_trains_at_any_batch_size(exports, checkpoint, to):
    network = FORMS[to].load(Path(exports[to]["folder"]) / FORMS[to].file)
    images = 255 * torch.rand(7, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    (wanted,) = logits_of_run(checkpoint, [images])

    assert float((network(images) - wanted).abs().max()) < NEAR * float(wanted.abs().max())
    assert float((network(images[3:4]) - wanted[3:4]).abs().max()) < NEAR * float(wanted.abs().max())


@pytest.mark.parametrize("to", FORMS)
def test_the_example_finds_the_classes_that_the_network_finds_without_alexshard(asked, checkpoint, images, to):
    blocks = re.split(r"^(?=\S)", asked[to][0], flags=re.M)[1:]

    assert [block.splitlines()[0] for block in blocks] == list(map(str, images))
    for image, block in zip(images, blocks, strict=True):
        lines = [re.fullmatch(r" +([\d.]+) %  (\S+)  (.+)", line).groups() for line in block.splitlines()[1:]]
        own = own_answers(checkpoint, image)
        assert [synset for _, synset, _ in lines] == [synset for _, synset in own], image.name
        assert [float(percent) for percent, _, _ in lines] == pytest.approx([100 * p for p, _ in own], abs=0.5)
        assert [words for _, _, words in lines] == [dict(checkpoint.classes)[synset] for _, synset in own]


@pytest.mark.parametrize("to", FORMS)
def test_the_snippet_of_the_model_card_runs_without_alexshard(asked, checkpoint, images, to):
    labels = [int(number) for number in re.findall(r"\d+", asked[to][1].rpartition("[")[2].partition("]")[0])]

    assert [checkpoint.classes[label][0] for label in labels] == [s for _, s in own_answers(checkpoint, images[0])]


@pytest.mark.parametrize("to", FORMS)
def test_an_export_names_no_folder_of_this_machine(exports, to):
    told = b"".join(path.read_bytes() for path in Path(exports[to]["folder"]).iterdir())

    assert str(ROOT).encode() not in told
    assert b"site-packages" not in told


def test_safetensors_hold_weights_mean_and_what_the_operations_are(exports, checkpoint):
    from safetensors import safe_open

    with safe_open(Path(exports["safetensors"]["folder"]) / "network.safetensors", "pt") as file:
        words = file.metadata()
        mean = file.get_tensor("mean")
        names = set(file.keys())

    assert names == {"mean", *checkpoint.network}
    assert torch.equal(mean, checkpoint.centre_mean())
    assert (words["preset"], words["width"], words["lrn_a"], words["fc_scale"]) == (
        "original",
        "0.125",
        "2e-05",
        "0.5",
    )


def test_onnx_has_opset_18_and_a_batch_of_any_size(exports):
    import onnx

    model = onnx.load(Path(exports["onnx"]["folder"]) / "network.onnx")
    (images,), (logits,) = model.graph.input, model.graph.output

    assert [each.version for each in model.opset_import if each.domain == ""] == [18]
    assert {each.domain for each in model.opset_import} == {""}
    assert [each.dim_param or each.dim_value for each in images.type.tensor_type.shape.dim] == ["batch", 3, 64, 64]
    assert [each.dim_param or each.dim_value for each in logits.type.tensor_type.shape.dim] == ["batch", 10]


def test_weights_too_many_for_one_onnx_file_lie_beside_it(run, tmp_path, monkeypatch):
    monkeypatch.setattr("alexshard.trainer.portable.LARGEST_ONNX_BYTES", 0)
    told = succeeded(export(run, "--to", "onnx", "--out", tmp_path / "out", "--json"))
    other = succeeded(export(run, "--to", "safetensors", "--out", tmp_path / "out", "--json"))  # which replaces it

    assert told["files"]["network.onnx.data"] > 4 * 328_170 > told["files"]["network.onnx"]
    assert {path.name for path in (tmp_path / "out").iterdir()} == other["files"].keys()


@pytest.mark.parametrize("to", ["safetensors", "torch-export"])
def test_another_recipe_is_exported_too(checkpoint, tmp_path, to):
    recipe = lively(dataclasses.replace(PAPER, conv6=True, mean="channel", dropout=False, precision="bf16"))
    network = AlexNet(recipe, 10, 64).state_dict()
    other = dataclasses.replace(checkpoint, recipe=recipe, network=network, optimiser=fresh(recipe))
    told = succeeded(export(saved(other, tmp_path / "run"), "--to", to, "--json"))

    assert told["largest_difference"] < NEAR * told["largest_logit"]
    card = (Path(told["folder"]) / "README.md").read_text()
    assert "the three channel means of the training images" in card
    assert "| convolutions | 6, with 16, 32, 48, 48, 32, 32 maps in two towers |" in card


def test_torchvisions_alexnet_is_refused_by_layer_and_operation(run):
    done = export(run, "--to", "torchvision")

    assert done.exit_code == 2
    assert "conv1 16×3×11×11 (there 64×3×11×11); conv2 32×8×5×5 (there 192×64×5×5)" in done.stderr
    assert "fc6 512×32 (there 4096×9216)" in done.stderr
    for obstacle in ("LRN", "groups", "same-map", "padding", "dropout"):
        assert obstacle in done.stderr
    assert "--to torch-export" in done.stderr
    assert not (run / "export" / "torchvision").exists()


def test_layers_that_torchvisions_alexnet_has_too_are_not_named(checkpoint):
    network = AlexNet(Recipe.paper(), 1000, 224).state_dict()
    classes = tuple((f"n{number:08d}", "") for number in range(1000))
    full = dataclasses.replace(checkpoint, recipe=Recipe.paper(), network=network, classes=classes)

    assert re.findall(r"(\w+) [\d×]+ \(there", exporting.refusal(full).where) == [f"conv{n}" for n in range(1, 6)]
    assert "same-map" not in exporting.refusal(full).why


# The model card


def test_the_card_tells_what_the_run_measured(trained, tmp_path):
    out = tmp_path / "out"
    done = export(trained, "--to", "safetensors", "--out", out)
    checkpoint = load_checkpoint(trained)
    card = (out / "README.md").read_text()
    found = checkpoint.evaluation

    assert done.exit_code == 0, done.output
    assert "\nchecked " in done.stdout
    assert card.startswith("---\nlibrary_name: pytorch\npipeline_tag: image-classification\nlicense: unknown\n")
    assert f"| top-1 error | {100 * found['top1_error']:.2f} % |" in card
    assert f"| top-5 error | {100 * found['top5_error']:.2f} % |" in card
    assert "| images | 40 |" in card
    assert "10 steps of 32 images: 2 of 2 epochs" in card
    assert f"(digest {checkpoint.shard_set})" in card
    assert "| 0 | 0.01 | 0.02 |" in card
    assert "37.5" not in card  # of another network, on other images
    assert "| network | this network, after step 10 |\n| split | val |\n" in card
    assert "flattered" not in card


def test_the_card_tells_the_images_the_set_and_ten_of_its_classes_by_name(checkpoint):
    classes = tuple((f"n{number}", f"name {number}, other name") for number in range(25))
    known = dataclasses.replace(checkpoint, classes=classes, training_images=12_345, set_name="photographs")
    card = model_card(known, "onnx", largest_difference=0, versions=versions())
    named = "; ".join(f"name {number}" for number in range(10))

    assert f"set photographs (digest {checkpoint.shard_set}): 12,345 training images of 25 classes, stored" in card
    assert f"The classes are: {named}; and 15 more in classes.json." in card
    few = model_card(checkpoint, "onnx", largest_difference=0, versions=versions())
    assert f"{checkpoint.training_images} training images of 10 classes" in few
    assert "more in classes.json" not in few


@pytest.mark.parametrize("how", ["--best", "best.pt"])
def test_the_card_of_the_best_network_says_that_its_error_chose_it(trained, tmp_path, how):
    if how == "--best":
        done = export(trained, "--to", "safetensors", "--out", tmp_path / "out", "--best")
    else:
        done = export(RunFolder(trained).best, "--to", "safetensors", "--out", tmp_path / "out")

    assert done.exit_code == 0, done.output
    error = (tmp_path / "out" / "README.md").read_text().split("## Error")[1].split("## ")[0]
    assert "chosen by these same images, so its error is a little flattered" in error


def test_the_state_that_was_evaluated_has_a_row_of_its_own(checkpoint):
    earlier = dataclasses.replace(checkpoint, evaluation={**checkpoint.evaluation, "step": 5})
    card = model_card(earlier, "onnx", largest_difference=0, versions=versions())

    assert "| network | an earlier one, after step 5; this network is that after 10 |\n| split | val |\n" in card


def test_one_epoch_and_one_step_are_said_in_the_singular(checkpoint):
    plateau = {**SCHEDULES["plateau"].fields, "epochs": 1, "patience": 1}
    recipe = dataclasses.replace(checkpoint.recipe, **plateau)
    card = model_card(
        dataclasses.replace(checkpoint, recipe=recipe, step=1), "onnx", largest_difference=0, versions=versions()
    )

    assert "1 step of 32 images: 0.2 of 1 epoch;" in card
    assert "more than 1 epoch old. None was made so far.\n\n| from drop | weights |" in card


@pytest.mark.parametrize(
    ("steps", "words"),
    [
        ((5,), "One was made, after epoch 1."),
        ((5, 20), "2 were made, after the epochs 1 and 4."),
        ((5, 20, 35), "3 were made, after the epochs 1, 4 and 7."),
    ],
)
def test_the_drops_of_a_plateau_are_told_by_the_epochs_after_which_they_were_made(checkpoint, steps, words):
    recipe = dataclasses.replace(checkpoint.recipe, **SCHEDULES["plateau"].fields)
    plateau = dataclasses.replace(checkpoint.plateau, drops=steps)
    found = dataclasses.replace(checkpoint, recipe=recipe, plateau=plateau)
    card = model_card(found, "onnx", largest_difference=0, versions=versions())

    assert f"epochs old. {words}\n" in card
    assert "from epoch" not in card


def test_rates_by_epochs_are_told_from_which_epoch(checkpoint):
    card = model_card(checkpoint, "onnx", largest_difference=0, versions=versions())

    assert "| from epoch | weights |" in card
    assert "drop |" not in card


def test_the_card_tells_how_counts_follow_from_the_width(checkpoint):
    narrow = dataclasses.replace(checkpoint.recipe, width=0.0625)
    network = AlexNet(narrow, 10, 64).state_dict()
    told = [
        model_card(dataclasses.replace(checkpoint, **of), "onnx", largest_difference=0, versions=versions())
        for of in (
            {"recipe": narrow, "network": network},
            {"recipe": dataclasses.replace(narrow, width=1.0)},
        )
    ]

    rule = "| width | factor 0.0625 on the counts of 2012, each rounded to a multiple of 8 a tower, at least 8 |\n"
    assert f"{rule}| convolutions | 5, with 16, 16, 32, 32, 16 maps in two towers |\n" in told[0]
    assert "| width | that of 2012 |\n" in told[1]


def test_the_card_of_a_network_that_was_not_evaluated_says_so(checkpoint):
    card = model_card(
        dataclasses.replace(checkpoint, evaluation=None), "onnx", largest_difference=0, versions=versions()
    )

    assert "## Error\n\nNot evaluated.\n" in card
    assert "- How often it errs was not measured. What its training images leave out" in card
    assert "was measured on" not in card
    evaluated = model_card(checkpoint, "onnx", largest_difference=0, versions=versions())
    assert "- Its error was measured on images like those it was trained on. What its training" in evaluated


def test_published_figures_stand_beside_the_papers_network_alone():
    assert is_published(Recipe.original(), 1000)
    assert is_published(dataclasses.replace(PAPER, seed=3, precision="bf16"), 1000)
    assert not is_published(Recipe.original(), 10)
    assert not is_published(dataclasses.replace(PAPER, width=0.5), 1000)
    assert not is_published(dataclasses.replace(PAPER, dropout=False), 1000)


def test_names_of_a_set_cannot_act_on_the_card(checkpoint):
    hostile = dataclasses.replace(checkpoint, set_name="a|b\n# <script>")
    card = model_card(hostile, "onnx", largest_difference=0, versions=versions())

    assert r"The shard set a\|b\n\# \<script\> (digest" in card
    assert "\n# <script>" not in card


@pytest.mark.parametrize("name", ["notes.txt", "cut.png", "none.jpg"])
def test_the_example_names_a_file_that_is_no_image_in_one_line(exports, images, tmp_path, name):
    (tmp_path / "notes.txt").write_text("some words")
    (tmp_path / "cut.png").write_bytes(images[0].with_name("oblong.png").read_bytes()[:2000])
    folder = Path(exports["safetensors"]["folder"])
    command = [sys.executable, "-B", folder / "example.py", tmp_path / name]
    done = subprocess.run(command, capture_output=True, text=True, check=False)

    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith(f"error: {tmp_path / name} cannot be read as an image: ")
    assert len(done.stderr.splitlines()) == 1


# The folder


@pytest.mark.parametrize("to", FORMS)
def test_a_folder_whose_name_is_not_utf8_is_refused_by_that_name(run, tmp_path, to):
    folder = tmp_path / os.fsdecode(b"caf\xe9")
    done = export(run, "--to", to, "--out", folder, "--json")

    assert done.exit_code == 2
    assert "is not UTF-8" in json.loads(done.stdout)["error"]["what"]
    assert "disk" not in done.output
    assert list(tmp_path.iterdir()) == []


def test_an_earlier_export_is_replaced_and_anything_else_is_left(run, tmp_path):
    out = tmp_path / "out"
    for _ in range(2):
        assert export(run, "--to", "safetensors", "--out", out).exit_code == 0
    (out / "__pycache__").mkdir()  # of who imported example.py
    assert export(run, "--to", "safetensors", "--out", out).exit_code == 0
    (out / "notes.txt").write_text("mine")
    refused = export(run, "--to", "safetensors", "--out", out)

    assert refused.exit_code == 2
    assert f"{out} holds something else than an earlier export: notes.txt" in refused.stderr
    assert (out / "notes.txt").read_text() == "mine"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("held", ["file", "folder", "card alone"])
def test_what_is_no_export_is_not_replaced(run, tmp_path, held):
    out = tmp_path / "out"
    if held == "file":
        out.write_text("mine")
    else:
        out.mkdir()
        (out / ("README.md" if held == "card alone" else "mine.txt")).write_text("mine")
    done = export(run, "--to", "onnx", "--out", out)

    assert done.exit_code == 2
    assert "holds something else than an earlier export" in done.stderr
    assert (out if held == "file" else next(out.iterdir())).read_text() == "mine"


def test_a_killed_export_leaves_the_earlier_one_and_the_next_clears_up(run, tmp_path):
    out = tmp_path / "out"
    assert export(run, "--to", "safetensors", "--out", out).exit_code == 0
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    code = f"""
import os, signal
from pathlib import Path
from alexshard.tools import export
export.model_card = lambda *_, **__: os.kill(os.getpid(), signal.SIGKILL)
export.export(Path({str(run)!r}), "safetensors", Path({str(out)!r}))
"""
    killed = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True)
    left = {path.name for path in tmp_path.glob("out.part-*/*")}
    kept = {path.name: path.read_bytes() for path in out.iterdir()}
    again = export(run, "--to", "safetensors", "--out", out)

    assert killed.returncode == -signal.SIGKILL
    assert "network.safetensors" in left  # it was at work
    assert kept == before
    assert again.exit_code == 0
    assert list(tmp_path.iterdir()) == [out]


def test_a_folder_at_work_in_another_process_is_not_cleared_up(tmp_path):
    other = (
        tmp_path
        / f"out.part-{exporting.unique_part_suffix().split('-', 1)[1].rsplit('-', 2)[0]}-{os.getppid()}-ab"
    )
    other.mkdir()
    with appearing_folder(tmp_path / "out") as part:
        (part / "file").write_text("x")

    assert other.is_dir()
    assert (tmp_path / "out" / "file").read_text() == "x"


# What can go wrong


def nothing_left(run):
    return not (run / "export").exists() or not any((run / "export").iterdir())


def test_outputs_that_are_not_finite_are_not_exported(checkpoint, tmp_path):
    broken = {name: tensor.clone() for name, tensor in checkpoint.network.items()}
    broken["fc8.weight"].fill_(3e38)
    run = saved(dataclasses.replace(checkpoint, network=broken), tmp_path / "run")
    done = export(run, "--to", "safetensors", "--json")

    assert done.exit_code == 1
    assert "outputs of the network after step 10 are not finite" in done.stderr
    assert json.loads(done.stdout)["exit_code"] == 1
    assert nothing_left(run)


@pytest.mark.parametrize("to", FORMATS)
def test_weights_of_another_network_are_one_error(checkpoint, tmp_path, to):
    other = {name: tensor for name, tensor in checkpoint.network.items() if not name.startswith("conv2")}
    other = dataclasses.replace(checkpoint, network=other, optimiser=fresh(checkpoint.recipe))
    done = export(run := saved(other, tmp_path / "run"), "--to", to)

    assert done.exit_code == 1
    assert "error: the checkpoint is of another network" in done.stderr
    assert nothing_left(run)


def test_an_export_that_is_stopped_leaves_nothing(checkpoint, tmp_path, monkeypatch):
    run = saved(checkpoint, tmp_path / "run")
    monkeypatch.setattr(exporting, "model_card", lambda *_, **__: signal.raise_signal(signal.SIGTERM))
    done = export(run, "--to", "safetensors")

    assert done.exit_code == 128 + signal.SIGTERM
    assert nothing_left(run)


def test_an_export_that_answers_otherwise_is_removed(checkpoint, tmp_path, monkeypatch):
    run = saved(checkpoint, tmp_path / "run")
    monkeypatch.setattr(AlexNet, "forward", lambda self, images: self.fc8.bias + images.mean((1, 2, 3))[:, None])
    done = export(run, "--to", "safetensors")

    assert done.exit_code == 1
    assert "error: the safetensors export answers otherwise" in done.stderr
    assert nothing_left(run)


def test_a_file_that_cannot_be_read_again_is_one_error(checkpoint, tmp_path, monkeypatch):
    run = saved(checkpoint, tmp_path / "run")

    def half(network, path, about):
        FORMS["safetensors"].write(network, path, about)
        path.write_bytes(path.read_bytes()[:1000])

    form = dataclasses.replace(FORMS["safetensors"], write=half)
    monkeypatch.setattr(exporting, "FORMS", {**FORMS, "safetensors": form})
    done = export(run, "--to", "safetensors")

    assert done.exit_code == 1
    assert "error: the network could not be read again" in done.stderr
    assert "safetensors 0." in done.stderr
    assert nothing_left(run)


@pytest.mark.parametrize(("to", "package"), [(to, name) for to in FORMS for name in FORMS[to].needs])
def test_a_missing_package_is_named_before_any_work(tmp_path, monkeypatch, to, package):
    monkeypatch.setitem(sys.modules, package, None)
    done = export(tmp_path / "no run", "--to", to)

    assert done.exit_code == 2
    # Others that import it are missing with it, unless they have been imported before.
    assert re.match(rf"error: --to {to} needs (\S+ and )*{package}( and \S+)*, which cannot", done.stderr)
    assert "pip install 'alexshard[export]'" in done.stderr


@pytest.mark.parametrize("to", FORMATS)
def test_a_run_that_is_missing_is_one_error(tmp_path, to):
    done = export(tmp_path / "none", "--to", to, "--json")

    assert done.exit_code == 2
    assert "no run" in json.loads(done.stdout)["error"]["what"]
    assert not (tmp_path / "none").exists()


def test_a_damaged_checkpoint_is_one_error(run, tmp_path):
    file = tmp_path / "cut.pt"
    whole = RunFolder(run).newest.read_bytes()
    file.write_bytes(whole[: len(whole) // 2])
    done = export(file, "--to", "safetensors", "--out", tmp_path / "out")

    assert done.exit_code == 1
    assert f"where: {file}" in done.stderr
    assert not (tmp_path / "out").exists()


def test_a_checkpoint_file_is_exported_to_a_folder_that_is_named(run, tmp_path):
    file = RunFolder(run).newest

    assert "name one by --out" in export(file, "--to", "safetensors").stderr
    assert export(file, "--to", "safetensors", "--out", tmp_path / "out").exit_code == 0
    assert (tmp_path / "out" / "README.md").is_file()


def test_an_unknown_format_is_a_wrong_call(run):
    assert export(run, "--to", "caffe").exit_code == 2
    with pytest.raises(WrongCall, match="unknown format 'caffe'"):
        exporting.export(run, "caffe")


def test_the_command_offers_the_formats_there_are_and_loads_no_torch_for_it():
    code = "import sys, alexshard.tools.export_command; print('torch' in sys.modules)"

    assert OFFERED == FORMATS
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "False\n"
