"""`alexshard info DIR --html`: the same as a page with pictures, in one file that asks nobody for anything."""

from __future__ import annotations

import base64
import io
import json
import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from .. import __version__
from ..shards import (
    QUARANTINE_NAME,
    CorruptShardSet,
    ShardFiles,
    ShardSet,
    appearing_whole,
    byte_size,
    open_regular,
)
from .info import image_words, plain, report, statistics_words
from .info_html import Html, document, element, joined, table
from .show import check_out, decoded, first_word
from .swatches import hexadecimal, mean_colour, ramp

THUMB = 72  # pixels
PICTURES = 480  # of all classes together, but at least one a class …
PICTURES_BYTES = 4_000_000  # … while they fit into this
REFUSALS_SHOWN = 200

_CSS = (Path(__file__).parent / "info_page.css").read_text(encoding="utf-8")


def write_page(shard_set: ShardSet, out: Path) -> None:
    """Write the page of a shard set.

    Raises:
        WrongCall: `out` cannot be.
        CorruptShardSet: as `page`.
    """
    check_out("--html", out, ".html", why="browsers know a page by its name")
    content = page(shard_set).encode("utf-8")
    with appearing_whole(out) as file:
        file.write(content)


def page(shard_set: ShardSet) -> str:
    """The page of a shard set: equal sets give equal pages.

    Raises:
        CorruptShardSet: an image or a list that it shows is damaged.
    """
    about = report(shard_set)
    labelled = next((name for name, split in shard_set.manifest.splits.items() if split.labelled), None)
    body = [
        element(
            "header",
            element("h1", shard_set.name),
            element(
                "p",
                f"{_counted(about['samples'], 'image', 'images')} of "
                f"{_counted(about['num_classes'], 'class', 'classes')}, {byte_size(about['bytes'])}",
            ),
        ),
        element(
            "main",
            _facts(shard_set, about),
            _splits(about),
            _colours(shard_set),
            _classes(shard_set, about, labelled),
            _quarantine(shard_set),
        ),
        element(
            "footer", element("p", f"Written by alexshard {__version__} from the shard set {shard_set.digest}.")
        ),
    ]
    return document(f"{shard_set.name} · alexshard", _CSS, joined(body))


def _counted(number: int, one: str, several: str) -> str:
    """A number before what it counts.

    >>> _counted(1, "class", "classes"), _counted(1000, "class", "classes")
    ('1 class', '1,000 classes')
    """
    return f"{number:,} {one if number == 1 else several}"


def _section(title: str, *content: object) -> Html:
    return element("section", element("h2", title), *content)


def _facts(shard_set: ShardSet, about: dict[str, Any]) -> Html:
    facts = {"digest": shard_set.digest, "images": image_words(shard_set.manifest.image)}
    facts |= {name.replace("_", " "): plain(value) for name, value in about["build"].items()}
    pairs = (element("div", element("dt", name), element("dd", value)) for name, value in facts.items())
    return _section("The set", element("dl", *pairs))


def _splits(about: dict[str, Any]) -> Html:
    header = ("split", "samples", "shards", "size", "found", "patched", "quarantined", "labels", "files")
    rows = [
        (
            name,
            split["samples"],
            split["shards"],
            byte_size(split["bytes"]),
            split["found"],
            split["patched"],
            split["quarantined"],
            "yes" if split["labelled"] else "no",
            element("code", split["files"]),
        )
        for name, split in about["splits"].items()
    ]
    return _section("Splits", table("What each split holds", header, rows, numbers=(1, 2, 3, 4, 5, 6)))


def _colours(shard_set: ShardSet) -> Html:
    statistics = shard_set.manifest.statistics
    mean = np.clip(np.round(shard_set.mean_image()), 0, 255).astype(np.uint8)
    side = len(mean)
    picture = element(
        "figure",
        element(
            "img", src=_jpeg(Image.fromarray(mean), 92), width=side, height=side, alt="mean of all training images"
        ),
        element("figcaption", f"mean image, {side}×{side}"),
    )
    colour = mean_colour(statistics)
    whole = sum(statistics.eigenvalues) or 1.0
    rows: list[Sequence[object]] = [
        (
            "mean",
            _swatches([colour], f"mean colour {hexadecimal(colour)}"),
            "  ".join(f"{value:.2f}" for value in statistics.channel_mean),
            "",
        )
    ]
    for number, value in enumerate(statistics.eigenvalues):
        vector = "  ".join(f"{row[number]:+.4f}" for row in statistics.eigenvectors).replace("-", "−")
        described = f"from the mean − 2σ to the mean + 2σ along component {number + 1}"
        rows.append(
            (
                f"component {number + 1}",
                _swatches(ramp(statistics, number), described),
                vector,
                f"λ {value:,.1f} · {value / whole:.1%}",
            )
        )
    header = ("", "colour", "red  green  blue", "variance")
    colours = table("Mean colour and principal components, RGB on 0..255", header, rows, numbers=(2, 3))
    return _section(
        "Colours",
        element(
            "p",
            f"Of {statistics_words(statistics)}. Each strip runs from two standard deviations below to two above.",
        ),
        element("div", picture, colours, class_="beside"),
    )


def _swatches(colours: Sequence[tuple[int, int, int]], described: str) -> Html:
    width = 180 / len(colours)
    rects = (
        element(
            "rect", x=f"{number * width:.2f}", y=0, width=f"{width + 0.5:.2f}", height=24, fill=hexadecimal(colour)
        )
        for number, colour in enumerate(colours)
    )
    return element("svg", *rects, viewBox="0 0 180 24", width=180, height=24, role="img", aria_label=described)


def _classes(shard_set: ShardSet, about: dict[str, Any], labelled: str | None) -> Html:
    classes = about["classes"]
    splits = [name for name, split in about["splits"].items() if split["labelled"]]
    if labelled is None:
        return _section("Classes", element("p", "No split has labels."))
    counts = [entry["samples"][labelled] for entry in classes]
    pictures = dict(_pictures(shard_set, labelled))
    rows = []
    for entry in classes:
        words = "" if entry["words"] == entry["synset"] else entry["words"]
        rows.append(
            (
                entry["label"],
                joined([element("span", entry["synset"], class_="id"), element("span", words, class_="words")]),
                *(entry["samples"][name] for name in splits),
                element("div", *pictures.get(entry["label"], ()), class_="pictures"),
            )
        )
    header = ("label", "class", *splits, "pictures")
    left = len(classes) - len(pictures)
    come = _counted(left, "class comes", "classes come")
    without = f" {come} without, so that the page stays small." if left else ""
    return _section(
        "Classes",
        _chart(about, labelled, counts),
        element("p", f"The pictures are the first of each class in {labelled}.{without}"),
        table("Every class, by label", header, rows, numbers=(0, *range(2, 2 + len(splits)))),
    )


def _chart(about: dict[str, Any], split: str, counts: Sequence[int]) -> Html:
    """One bar a class, in the order of labels."""
    highest = max(counts) or 1
    gap = 0.2 if len(counts) <= 200 else 0.0
    bars = (
        element(
            "rect",
            element("title", f"{label} {about['classes'][label]['synset']}: {count:,}"),
            x=f"{label + gap / 2:g}",
            y=f"{100 - 100 * count / highest:.2f}",
            width=f"{1 - gap:g}",
            height=f"{100 * count / highest:.2f}",
        )
        for label, count in enumerate(counts)
    )
    told = f"{split}: {_range(counts, [entry['synset'] for entry in about['classes']])}"
    chart = element(
        "svg",
        *bars,
        viewBox=f"0 0 {len(counts)} 100",
        preserveAspectRatio="none",
        role="img",
        aria_label=f"bar chart of samples a class, {told}",
        class_="chart",
        style=f"max-width:{1.6 * len(counts):.1f}rem",
    )
    return element("figure", chart, element("figcaption", told))


def _range(counts: Sequence[int], names: Sequence[str]) -> str:
    least, most = min(counts), max(counts)
    if least == most:
        return f"{_counted(most, 'sample', 'samples')} of each class"
    few, many = names[counts.index(least)], names[counts.index(most)]
    return f"from {least:,} ({few}) to {most:,} ({many}) samples a class, by label"


def _pictures(shard_set: ShardSet, split: str) -> Iterator[tuple[int, list[Html]]]:
    """Of each label the first few samples on disk, as small JPEGs."""
    index = shard_set.index(split)
    classes = shard_set.manifest.classes
    by_label = np.argsort(index.label, kind="stable")
    starts = np.searchsorted(index.label[by_label], np.arange(len(classes) + 1))
    each = min(8, max(1, PICTURES // len(classes)))
    left = PICTURES_BYTES
    with ShardFiles(index, shard_set.shelf) as stored:
        for label, entry in enumerate(classes):
            shown = []
            for position in by_label[starts[label] : starts[label + 1]][:each]:
                picture = decoded(shard_set, index, stored, int(position))
                picture.thumbnail((THUMB, THUMB), Image.Resampling.LANCZOS)
                source = _jpeg(picture, 75)
                left -= len(source)
                alt = f"{first_word(entry)}: sample {index.keys[position]}"
                size = {"width": picture.width, "height": picture.height}
                shown.append(element("img", src=source, alt=alt, **size))
            if left < 0:
                return
            yield label, shown


def _jpeg(picture: Image.Image, quality: int) -> str:
    file = io.BytesIO()
    picture.save(file, "jpeg", quality=quality, optimize=True)
    return "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode("ascii")


def _quarantine(shard_set: ShardSet) -> Html:
    path = shard_set.path / QUARANTINE_NAME
    try:
        with open_regular(path) as file:
            refusals = [json.loads(line) for line in file.read().decode("ascii").splitlines()]
        rows = [tuple(refusal[name] for name in ("name", "reason", "split", "source")) for refusal in refusals]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CorruptShardSet(
            f"{QUARANTINE_NAME} cannot be read: {error}",
            where=str(path),
            remedy=f"alexshard verify {shlex.quote(str(shard_set.path))}",
        ) from None
    if not rows:
        return _section("Quarantine", element("p", "No image was refused."))
    found = sum(split.found for split in shard_set.manifest.splits.values())
    told = f"{len(rows):,} of {_counted(found, 'image', 'images')} {'was' if len(rows) == 1 else 'were'} refused."
    if len(rows) > REFUSALS_SHOWN:
        told += f" The first {REFUSALS_SHOWN:,} are shown; {QUARANTINE_NAME} lists all."
    refused = table(
        "Images that were refused", ("name", "reason", "split", "source"), rows[:REFUSALS_SHOWN], class_="list"
    )
    return _section("Quarantine", element("p", told), refused)
