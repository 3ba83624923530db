"""`alexshard info DIR --html` writes one file that shows a set, asks nobody for anything, and bears any name."""

from __future__ import annotations

import base64
import io
import json
import shutil
import subprocess
import xml.etree.ElementTree as ET
from pathlib import Path

import numpy as np
import pytest
from alexshard.shards import (
    ClassEntry,
    ImageFormat,
    Sample,
    SampleRow,
    ShardFiles,
    ShardName,
    ShardSet,
    ShardWriter,
    Split,
    SplitEntry,
    Statistics,
    finish_shard_set,
)
from alexshard.tools.info_page import PICTURES_BYTES, page
from PIL import Image

from tests.conftest import alexshard, run

HOSTILE = ["<img src=x onerror=alert(1)>", '"><svg onload=alert(1)>', "&amp; co", "it's <b>", "犬 Ж", "plain"]


def parsed(text: str) -> ET.Element:
    """The page's tree; it is well-formed XML apart from its first line."""
    first, _, rest = text.partition("\n")
    assert first == "<!DOCTYPE html>"
    return ET.fromstring(rest)


def picture(element: ET.Element) -> np.ndarray:
    """The pixels of an <img>."""
    kind, _, data = element.get("src", "").partition(",")
    assert kind == "data:image/jpeg;base64"
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(data))), np.float64)


@pytest.fixture(scope="module")
def written(sample_set: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    out = tmp_path_factory.mktemp("page") / "set.html"
    assert run(*alexshard("info", sample_set, "--html", out)) == f"{out}\n"
    return out.read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def hostile(sample_source: Path, sample_set: Path, tmp_path_factory: pytest.TempPathFactory) -> ShardSet:
    """A set whose classes and refused images are called as no page would like it."""
    base = tmp_path_factory.mktemp("hostile")
    shard_set = ShardSet.open(sample_set)
    index = shard_set.index("train")
    with ShardFiles(index, shard_set.shelf) as stored:
        for number, name in enumerate(HOSTILE):
            folder = base / "source" / name
            folder.mkdir(parents=True)
            for copy in range(number + 1):
                (folder / f"good{copy}.JPEG").write_bytes(stored.bytes_of(number))
            (folder / "<i>bad & 'worse'.JPEG").write_bytes(b"")
    run(*alexshard("build", base / "source", "--out", base / "set", "--max-bad", "100%"))
    return ShardSet.open(base / "set")


def test_the_page_holds_all_that_it_shows(written):
    tree = parsed(written)
    loads = [
        value for element in tree.iter() for name, value in element.items() if name in {"src", "href", "srcset"}
    ]

    assert len(loads) == 1 + 10 * 8
    assert all(value.startswith("data:image/jpeg;base64,") for value in loads)
    assert not {"script", "link", "iframe", "object", "base"} & {element.tag for element in tree.iter()}
    assert "url(" not in written
    assert "@import" not in written
    policy = [meta.get("content") for meta in tree.iter("meta") if meta.get("http-equiv")]
    assert policy == ["default-src 'none'; img-src data:; style-src 'unsafe-inline'"]


def test_equal_sets_give_equal_pages(written, sample_set):
    assert page(ShardSet.open(sample_set)) == written


def test_each_picture_is_of_its_key_and_class(written, sample_set):
    shard_set = ShardSet.open(sample_set)
    index, classes = shard_set.index("train"), shard_set.manifest.classes
    shown = 0
    with ShardFiles(index, shard_set.shelf) as stored:
        for row in parsed(written).iter("tr"):
            for image in row.iter("img"):
                name, _, key = image.get("alt", "").partition(": sample ")
                at = index.keys.index(key)
                wanted = Image.open(io.BytesIO(stored.bytes_of(at))).resize((72, 72), Image.Resampling.LANCZOS)
                shown += 1

                assert row[0].text == str(index.label[at])
                assert name == classes[index.label[at]].words
                difference = picture(image) - np.asarray(wanted, np.float64)
                assert np.abs(difference.mean((0, 1))).max() < 4  # JPEG keeps the mean of each channel
    assert shown == 80


def test_the_mean_image_is_the_sets(written, sample_set):
    (image,) = [
        image for image in parsed(written).iter("img") if image.get("alt") == "mean of all training images"
    ]

    assert np.abs(picture(image) - ShardSet.open(sample_set).mean_image()).max() < 12


def test_negative_numbers_have_a_minus(written, sample_set):
    table = next(table for table in parsed(written).iter("table") if "principal" in table.findtext("caption", ""))
    told = [row[2].text for row in table.find("tbody")][1:]
    vectors = ShardSet.open(sample_set).manifest.statistics.eigenvectors

    assert min(map(min, vectors)) < 0
    assert told == [
        "  ".join(f"{'−' if row[i] < 0 else '+'}{abs(row[i]):.4f}" for row in vectors) for i in range(3)
    ]


CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


@pytest.mark.skipif(CHROMIUM is None, reason="NO BROWSER: chromium is not installed")
@pytest.mark.parametrize("width", [900, 1100, 1280])
def test_in_a_window_of_a_desk_no_table_of_colours_is_cut_and_no_columns_touch(written, tmp_path, width):
    measured = """<script>addEventListener("load", () => {
      const edges = head => { const range = document.createRange(); range.selectNodeContents(head);
                              return range.getBoundingClientRect(); };
      const heads = [...document.querySelectorAll("thead th")];
      const [left, right] = ["quarantined", "labels"].map(name => edges(heads.find(h => h.textContent == name)));
      const colours = document.querySelector(".beside .wide");
      document.title = [colours.scrollWidth - colours.clientWidth, Math.round(right.left - left.right)].join(" ");
    })</script>"""
    policy = "<meta http-equiv="
    assert written.count(policy) == 1
    (tmp_path / "page.html").write_text(
        written.replace(policy, "<meta data-left-out=").replace("</body>", measured + "</body>"), encoding="utf-8"
    )
    options = ["--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}"]
    out = run(CHROMIUM, *options, f"--window-size={width},900", "--dump-dom", (tmp_path / "page.html").as_uri())
    cut, gap = map(int, out.partition("<title>")[2].partition("</title>")[0].split())

    assert cut == 0
    assert gap >= 24


def test_the_page_tells_splits_counts_and_colours(written, sample_set):
    tree = parsed(written)
    text = "\n".join(tree.itertext())
    statistics = ShardSet.open(sample_set).manifest.statistics
    bars = [rect for svg in tree.iter("svg") if svg.get("class") == "chart" for rect in svg]

    for said in (
        ShardSet.open(sample_set).digest,
        "train-000000.tar",
        "No image was refused.",
        "16 samples of each",
    ):
        assert said in text
    assert [bar[0].text for bar in bars][:2] == ["0 n90010423: 16", "1 n90018342: 16"]
    assert {bar.get("height") for bar in bars} == {"100.00"}
    assert "#{:02x}{:02x}{:02x}".format(*map(round, statistics.channel_mean)) in written
    assert f"λ {statistics.eigenvalues[0]:,.1f}" in text


def test_everything_can_be_read_without_seeing_it(written):
    tree = parsed(written)

    assert tree.get("lang") == "en"
    assert all(image.get("alt") for image in tree.iter("img"))
    assert all(svg.get("role") == "img" and svg.get("aria-label") for svg in tree.iter("svg"))
    assert len(list(tree.iter("table"))) == 3
    for table in tree.iter("table"):
        assert table.find("caption") is not None
        assert {head.get("scope") for head in table.find("thead").iter("th")} == {"col"}
        assert all(row[0].tag == "th" and row[0].get("scope") == "row" for row in table.find("tbody"))


def test_no_name_acts_on_the_page(hostile, written):
    tree = parsed(page(hostile))
    classes = [element.text for element in tree.iter("span") if element.get("class") == "id"]

    assert classes == sorted(HOSTILE)
    assert not [name for element in tree.iter() for name in element.attrib if name.startswith("on")]
    assert {element.tag for element in tree.iter()} == {element.tag for element in parsed(written).iter()}
    assert len(list(tree.iter("img"))) == 1 + 1 + 2 + 3 + 4 + 5 + 6


def test_each_bar_is_as_high_as_its_class_has_samples(hostile):
    tree = parsed(page(hostile))
    samples = {name: number for number, name in enumerate(HOSTILE, start=1)}
    expected = [samples[name] for name in sorted(HOSTILE)]
    (chart,) = [svg for svg in tree.iter("svg") if svg.get("class") == "chart"]
    rows = [row for row in tree.iter("tr") if row.find("td/span") is not None]

    assert [round(float(bar.get("height", "")) * 6 / 100, 2) for bar in chart] == expected
    assert [int(row[2].text or "") for row in rows] == expected
    assert f"from 1 ({HOSTILE[0]}) to 6 ({HOSTILE[5]}) samples a class" in "".join(tree.itertext())


def test_every_refused_image_is_told_with_its_reason(hostile):
    (listed,) = [table for table in parsed(page(hostile)).iter("table") if table.get("class") == "list"]
    rows = {tuple("".join(cell.itertext()) for cell in row) for row in listed.find("tbody")}

    lines = (hostile.path / "quarantine.jsonl").read_text(encoding="ascii").splitlines()
    refused = [json.loads(line) for line in lines]
    assert rows == {(item["name"], item["reason"], item["split"], item["source"]) for item in refused}
    assert len(rows) == len(HOSTILE)


def test_of_one_image_is_spoken_in_the_singular(sample_set, tmp_path):
    shard_set = ShardSet.open(sample_set)
    index = shard_set.index("train")
    (tmp_path / "source" / "cat").mkdir(parents=True)
    with ShardFiles(index, shard_set.shelf) as stored:
        (tmp_path / "source" / "cat" / "good.JPEG").write_bytes(stored.bytes_of(0))
    (tmp_path / "source" / "cat" / "bad.JPEG").write_bytes(b"")
    run(*alexshard("build", tmp_path / "source", "--out", tmp_path / "set", "--max-bad", "100%"))
    text = "\n".join(parsed(page(ShardSet.open(tmp_path / "set"))).itertext())

    assert "1 image of 1 class, " in text
    assert "train: 1 sample of each class" in text
    assert "1 of 2 images was refused." in text


def test_a_set_without_labels_is_shown_without_classes(hostile, sample_set, tmp_path):
    shard_set = ShardSet.open(sample_set)
    index = shard_set.index("test")
    (tmp_path / "source" / "test").mkdir(parents=True)
    with ShardFiles(index, shard_set.shelf) as stored:
        (tmp_path / "source" / "test" / "it.JPEG").write_bytes(stored.bytes_of(0))
    options = ["--splits", "test", "--unlabelled", "--statistics-from", hostile.path]
    run(*alexshard("build", tmp_path / "source", "--out", tmp_path / "set", *options))
    tree = parsed(page(ShardSet.open(tmp_path / "set")))
    refused = subprocess.run(
        alexshard("show", tmp_path / "set", "--label", "0"),
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    run(*alexshard("show", tmp_path / "set", "--out", tmp_path / "sheet.png"))

    assert "No split has labels." in "".join(tree.itertext())
    assert len(list(tree.iter("img"))) == 1
    assert (refused.returncode, "have no labels" in refused.stderr) == (2, True)
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.text["Description"].splitlines()[-1] == "it: it, no label"


def many_classes(folder: Path, number: int) -> ShardSet:
    """Noise, which compresses worst: a class, a sample."""
    rng, side = np.random.default_rng(0), 72
    folder.mkdir()
    rows = []
    with ShardWriter(folder, ShardName(Split.TRAIN, 0)) as writer:
        for label in range(number):
            file = io.BytesIO()
            Image.fromarray(rng.integers(0, 256, (side, side, 3), np.uint8)).save(file, "jpeg", quality=90)
            crc32 = writer.write(Sample(f"s{label}", label, file.getvalue(), "jpg"))
            rows.append(SampleRow(f"s{label}", label, "train", str(writer.name), f"s{label}", "", crc32))
    finish_shard_set(
        folder,
        image=ImageFormat(side, "jpeg", 90, "4:2:0"),
        splits={"train": SplitEntry(number, True, 0, 0, number, (writer.entry,))},
        classes=[ClassEntry(f"n{label:08d}", "words " * 8, None) for label in range(number)],
        statistics=Statistics(1, (0.0,) * 3, ((0.0,) * 3,) * 3, (0.0,) * 3, ((1.0, 0.0, 0.0),) * 3),
        mean_image=np.zeros((side, side, 3)),
        build={},
        rows=rows,
        quarantine=[],
    )
    return ShardSet.open(folder)


def test_a_thousand_classes_of_noise_stay_below_five_megabytes(tmp_path):
    text = page(many_classes(tmp_path / "many", 1000))
    shown = text.count("<img ") - 1

    assert PICTURES_BYTES / 2 < len(text.encode()) < 5_000_000
    assert f" {1000 - shown:,} classes come without" in text
    assert "n00000999" in text


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--html", "."], "is a folder"),
        (["--html", "absent/info.html"], "there is no folder absent"),
        (["--html", "page.txt"], "does not end in .html"),
        (["--json", "--html"], "leave out --classes and --json"),
    ],
)
def test_a_wrong_call_writes_nothing(sample_set, tmp_path, options, told):
    done = subprocess.run(
        alexshard("info", sample_set, *options), cwd=tmp_path, capture_output=True, text=True, check=False
    )

    assert (done.returncode, done.stdout) == (2, "")
    assert told in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_without_a_name_the_page_is_info_html(sample_set, tmp_path):
    done = subprocess.run(
        alexshard("info", sample_set, "--html"), cwd=tmp_path, capture_output=True, text=True, check=False
    )

    assert (done.returncode, done.stdout) == (0, "info.html\n")
    assert [path.name for path in tmp_path.iterdir()] == ["info.html"]


def test_a_damaged_list_of_the_refused_is_named(sample_set, tmp_path):
    copy = shutil.copytree(sample_set, tmp_path / "set")
    (copy / "quarantine.jsonl").write_text("[]\n", encoding="ascii")
    done = subprocess.run(
        alexshard("info", copy, "--html", tmp_path / "x.html"), capture_output=True, text=True, check=False
    )

    assert done.returncode == 1
    assert "quarantine.jsonl cannot be read" in done.stderr
    assert not (tmp_path / "x.html").exists()
