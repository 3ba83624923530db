"""docs/format.md is run: what each library reads of a set, line by line as the page shows it."""

from __future__ import annotations

import importlib.util
import io
import json
import os
import re
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.conftest import ROOT

PAGE = (ROOT / "docs" / "format.md").read_text(encoding="utf-8")
SNIPPETS = {
    (title, place): code
    for title, section in re.findall(r"^## (.+?)\n(.*?)(?=^## |\Z)", PAGE, re.DOTALL | re.MULTILINE)
    for place, code in enumerate(re.findall(r"```python\n(.*?)```", section, re.DOTALL), start=1)
}
NEEDS = {"DALI": "nvidia.dali", "Hugging Face datasets": "datasets"}
# Appended to each: labels, shapes and mean colours, since decoders may differ by a level.
TELL = """
import json
import numpy as np
pixels = [np.asarray(picture, dtype=np.float64) for picture, _ in samples]
print(json.dumps([[int(label), *image.shape, *image.mean((0, 1))] for image, (_, label) in zip(pixels, samples)]))
"""
# timm's packages import torchvision as soon as they are touched; its webdataset reader does not need it.
READER_ALONE = """
import importlib.util, sys, types
path = importlib.util.find_spec("timm").submodule_search_locations[0]
for name in ("timm", "timm.data", "timm.data.readers"):
    module = types.ModuleType(name)
    module.__path__ = [path + name.removeprefix("timm").replace(".", "/")]
    sys.modules[name] = module
from timm.data.readers.reader_wds import ReaderWds
samples = list(ReaderWds("shards/mine", split="{split}", is_training={training}, input_key="{key}"))
assert len(samples) == len(ReaderWds("shards/mine", split="{split}"))
"""

Told = list[list[float]]


class Reader:
    """A folder with the page's set in it, in which its examples are run."""

    def __init__(self, desk: Any, *options: str, drawn: Path | None = None) -> None:
        (lines,) = re.findall(r"```sh\n(.*?)```", PAGE, re.DOTALL)
        if drawn is not None:
            (desk.folder / "drawn").symlink_to(drawn)
        for line in lines.strip().splitlines():
            if drawn is None or " sample " not in line:
                self.told = desk.type(" ".join([line, *options]) if " build " in line else line).stdout
        self.folder: Path = desk.folder

    def run(self, *examples: str) -> Told:
        """What examples read, one after the other: in a process of their own, without a network, each anew.

        They must read the same. A library that takes seconds to import is so imported once.
        """
        environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(self.folder / "hf")}
        program = f"for code in {[code + TELL for code in examples]!r}:\n    exec(code, {{}})\n"
        done = subprocess.run(
            [sys.executable, "-c", program],
            cwd=self.folder,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, f"{program}\n{done.stderr}"
        told: list[Told] = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("[[")]
        assert told == len(examples) * told[:1]
        return told[0]

    def expected(self, split: str = "train") -> Told:
        """The same by tarfile and Pillow, in the order of the tars."""
        told = []
        for path in sorted((self.folder / "shards/mine").glob(f"{split}-*.tar")):
            with tarfile.open(path) as tar:
                payloads = [tar.extractfile(member).read() for member in tar]
            for image, label in zip(payloads[::2], payloads[1::2], strict=True):
                pixels = np.asarray(Image.open(io.BytesIO(image)), np.float64)
                told.append([int(label), *pixels.shape, *pixels.mean((0, 1))])
        return told


@pytest.fixture(scope="module")
def reader(make_desk: Callable[[str], Any]) -> Reader:
    return Reader(make_desk("page"))


@pytest.fixture(scope="module")
def raw_reader(make_desk: Callable[[str], Any], reader: Reader) -> Reader:
    return Reader(make_desk("raw-page"), "--format raw", drawn=reader.folder / "drawn")


def need(module: str) -> None:
    try:
        found = importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:
        found = False
    if not found:
        pytest.skip(f"NOT TRIED: {module} is not installed, so nobody has looked whether it reads our sets")


def same(read: Told, expected: Told) -> None:
    """Equal labels and shapes in equal order; of each picture, mean colours within half a level."""
    assert len(expected) > 30
    assert [row[:4] for row in read] == [row[:4] for row in expected]
    np.testing.assert_allclose(np.array(read)[:, 4:], np.array(expected)[:, 4:], atol=0.5)


@pytest.mark.parametrize("title", dict.fromkeys(title for title, _ in SNIPPETS if title != "timm"))
def test_each_example_of_the_page_reads_every_sample(reader, title):
    need(NEEDS.get(title, "torch"))
    examples = [code for (section, _), code in SNIPPETS.items() if section == title]

    same(reader.run(*examples), reader.expected())


def test_the_page_shows_six_libraries():
    assert list(dict.fromkeys(title for title, _ in SNIPPETS)) == [
        "webdataset",
        "DALI",
        "Python and Pillow alone",
        "torch",
        "Hugging Face datasets",
        "timm",
    ]


def test_the_pattern_on_the_page_is_the_one_that_info_prints(reader):
    assert "train-{000000..000003}.tar" in reader.told
    assert "train-{000000..000003}.tar" in SNIPPETS["webdataset", 1]


@pytest.mark.parametrize("title", ["webdataset", "DALI", "Hugging Face datasets"])
def test_raw_sets_are_read_as_well_by_their_extension(raw_reader, title):
    need(NEEDS.get(title, "torch"))

    same(raw_reader.run(SNIPPETS[title, 1].replace('"jpg"', '"ppm"')), raw_reader.expected())


def test_hugging_face_finds_the_splits_by_the_names_of_the_shards(reader):
    need("datasets")
    code = """
from datasets import load_dataset
splits = load_dataset("shards/mine", streaming=True)
assert list(splits) == ["train", "validation", "test"], splits
samples = [(row["jpg"], row["cls"]) for row in splits["validation"]]
"""

    same(reader.run(code), reader.expected("val"))


def test_the_example_of_timm_reads_every_sample(reader):
    need("timm")
    need("torchvision")

    same(reader.run(SNIPPETS["timm", 1]), reader.expected())


@pytest.mark.parametrize("split", ["train", "val"])
def test_timms_reader_reads_every_sample(reader, split):
    need("timm")

    same(reader.run(READER_ALONE.format(split=split, training=False, key="jpg;png;webp")), reader.expected(split))


def test_timms_reader_takes_its_epoch_from_the_info_file(reader):
    need("timm")
    read = reader.run(READER_ALONE.format(split="train", training=True, key="jpg;png;webp"))

    assert sorted(row[0] for row in read) == sorted(row[0] for row in reader.expected())


def test_timms_reader_reads_raw_sets(raw_reader):
    need("timm")

    same(
        raw_reader.run(READER_ALONE.format(split="train", training=False, key="jpg;ppm")),
        raw_reader.expected("train"),
    )


def test_the_info_file_says_what_the_tars_hold(reader):
    folder = reader.folder / "shards/mine"
    splits = json.loads((folder / "_info.json").read_bytes())["splits"]
    for name, split in splits.items():
        held = []
        for path in sorted(folder.glob(f"{name}-*.tar")):
            with tarfile.open(path) as tar:
                held.append((path.name, sum(member.name.endswith(".cls") for member in tar)))

        assert list(zip(split["filenames"], split["shard_lengths"], strict=True)) == held
        assert split["num_samples"] == sum(number for _, number in held) > 0
        assert split["name"] == name
    assert list(splits) == ["train", "val", "test"]
