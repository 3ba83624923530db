"""`alexshard show`: a contact sheet of a shard set, as packed or as the trainer gets it."""

from __future__ import annotations

import io
import shlex
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from ..shards import (
    NO_LABEL,
    AlexshardError,
    ClassEntry,
    CorruptShardSet,
    ShardFiles,
    ShardSet,
    SplitIndex,
    WrongCall,
    appearing_whole,
    printable,
)
from .sheet import Tile, draw_sheet

PLAIN_NUMBER, AUGMENTED_NUMBER = 64, 12  # pictures, unless asked for otherwise
EPOCHS_SHOWN = 5  # beside each original
AUGMENTED_AT_MOST = 500  # originals: 3,000 tiles


@dataclass(frozen=True, slots=True)
class Wish:
    """What is to be shown."""

    split: str | None = None  # None: train, or the first that there is
    label: str | None = None  # number, synset or name; None: any
    number: int | None = None
    seed: int = 0  # of the choice, and of the run whose crops and jitter are shown
    augmented: bool = False


def show(shard_set: ShardSet, wish: Wish, out: Path, *, on_images: Callable[[int], object] = int) -> None:
    """Write the contact sheet as a PNG; its description lists every name in full.

    Raises:
        WrongCall: the split, the label or the output cannot be.
        AlexshardError: nothing can be written there.
        CorruptShardSet: an image cannot be decoded.
    """
    check_out("--out", out, ".png", why="the sheet is a PNG, whose colours are exact")
    split = wish.split or next(iter(shard_set.manifest.splits))
    index = shard_set.index(split)
    chosen = _chosen(shard_set, index, wish)
    with ShardFiles(index, shard_set.shelf) as stored:
        tiles = []
        for position in chosen:
            tiles.append([_original(shard_set, index, stored, int(position))])
            on_images(1)
    header = [
        f"{shard_set.name} · {split} · {len(chosen):,} of {len(index):,} samples · seed {wish.seed}",
        f"shard set {shard_set.digest[:16]}",
    ]
    if wish.augmented:
        header.append(
            f"left: as stored; then what the loader gives in epochs 0 to {EPOCHS_SHOWN - 1} (augment paper), "
            "the subtracted mean added again to be seen"
        )
        header.append(
            "y, x: how many pixels below and right of the stored image's corner the crop begins; "
            "colour: what was added to its red, green and blue (0 to 255)"
        )
        for group, variants in zip(tiles, _variants(shard_set, index, chosen, wish.seed, on_images), strict=True):
            group.extend(variants)
    sheet = draw_sheet(header, tiles, stored_side=shard_set.manifest.image.side)
    about = PngInfo()
    names = (
        f"{index.keys[at]}: {group[0].title}, {group[0].note}" for at, group in zip(chosen, tiles, strict=True)
    )
    about.add_itxt("Description", "\n".join(map(printable, [*header, *names])))
    file = io.BytesIO()
    sheet.save(file, "png", pnginfo=about)
    with appearing_whole(out) as target:
        target.write(file.getvalue())


def check_out(option: str, out: Path, suffix: str, *, why: str) -> None:
    """Whether a file of a kind can be written there.

    Raises:
        WrongCall: the name ends otherwise, is a folder's, or lies in a folder that is not there.
        AlexshardError: nothing can be written there.
    """
    if out.is_dir():
        raise WrongCall(f"{option} {out} is a folder", remedy=f"{option} {_pasted(out / f'name{suffix}')}")
    if out.suffix.lower() != suffix:
        raise WrongCall(
            f"{option} {out} does not end in {suffix}",
            why=why,
            remedy=f"{option} {_pasted(out.with_suffix(suffix))}",
        )
    if not out.parent.is_dir():
        raise WrongCall(
            f"{option} {out}: there is no folder {out.parent}", remedy=f"mkdir -p {_pasted(out.parent)}"
        )
    try:
        tempfile.TemporaryFile(dir=out.parent).close()  # asked now, not after all the work
    except OSError as error:
        raise AlexshardError(
            f"{option} {out} cannot be written: {error.strerror}",
            where=str(out.parent.absolute()),
            remedy=f"{option} with a file in a folder that you may write to",
        ) from None


def _pasted(path: Path) -> str:
    """A path as it stands in a command that can be pasted."""
    return shlex.quote(str(path))


def find_label(shard_set: Path, classes: Sequence[ClassEntry], text: str) -> int:
    """The label that a person means: a synset or folder name, a number, or a name among the words.

    A name comes before a number, since folders may be called 0, 1, 10. Errors name the command that lists the
    classes of `shard_set`.

    Raises:
        WrongCall: none is called so, or several are; near names are offered.
    """
    listing = f"alexshard info {_pasted(shard_set)} --classes"
    by_synset = {entry.synset: label for label, entry in enumerate(classes)}
    if text in by_synset:
        return by_synset[text]
    if text.isascii() and text.isdigit():
        if len(text) < 10 and int(text) < len(classes):
            return int(text)
        raise WrongCall(
            f"there is no label {text}: the set has 0 to {len(classes) - 1}", remedy=f"{listing} lists all of them"
        )
    by_name: dict[str, list[int]] = {}
    for label, entry in enumerate(classes):
        names = (entry.synset, entry.words, *map(str.strip, entry.words.split(",")))
        for name in {name.casefold() for name in names}:
            by_name.setdefault(name, []).append(label)
    found = by_name.get(text.casefold(), [])
    if len(found) == 1:
        return found[0]
    if found:
        several = ", ".join(f"{label} ({classes[label].synset}: {classes[label].words})" for label in found)
        raise WrongCall(f"several classes are called {text!r}: {several}", remedy=f"--label {found[0]}")
    near = get_close_matches(text.casefold(), by_name, n=3, cutoff=0.5)
    offered = [f"{classes[by_name[name][0]].synset} ({first_word(classes[by_name[name][0]])})" for name in near]
    raise WrongCall(
        f"no class is called {text!r}" + (f"; near: {', '.join(offered)}" if offered else ""),
        remedy=f"{listing} lists all of them",
    )


def first_word(entry: ClassEntry) -> str:
    """The first of a class's names; a folder's name, which may hold a comma, is one.

    >>> first_word(ClassEntry("n01440764", "tench, Tinca tinca", 1)), first_word(ClassEntry("a, b", "a, b", None))
    ('tench', 'a, b')
    """
    if entry.words == entry.synset:
        return entry.synset
    return entry.words.split(",")[0].strip() or entry.synset


def decoded(shard_set: ShardSet, index: SplitIndex, stored: ShardFiles, position: int) -> Image.Image:
    """The picture at a position of a split's order on disk, RGB.

    Raises:
        CorruptShardSet: it is none.
    """
    try:
        with Image.open(io.BytesIO(stored.bytes_of(position)), formats=("JPEG", "PPM")) as picture:
            return picture.convert("RGB")
    except (OSError, ValueError, SyntaxError) as error:
        shard = index.shards[int(index.shard[position])]
        raise CorruptShardSet(
            f"sample {index.keys[position]} cannot be decoded: {error}",
            where=f"{shard_set.path / shard.name} at byte {int(index.offset[position]):,}",
            why="training would stop here",
            remedy=f"alexshard verify {_pasted(shard_set.path)}",
        ) from None


def _chosen(shard_set: ShardSet, index: SplitIndex, wish: Wish) -> NDArray[np.int64]:
    """Positions on disk, drawn by the seed from each class in turn, in the order of labels."""
    positions = np.arange(len(index))
    if wish.label is not None:
        if (index.label == NO_LABEL).all():
            raise WrongCall(f"the samples of {index.split} have no labels", remedy="leave out --label")
        classes = shard_set.manifest.classes
        label = find_label(shard_set.path, classes, wish.label)
        positions = np.flatnonzero(index.label == label)
        if not len(positions):
            entry = classes[label]
            raise WrongCall(
                f"{index.split} has no sample of label {label} ({entry.synset}, {first_word(entry)})",
                remedy="another --split or --label",
            )
    number = wish.number or (AUGMENTED_NUMBER if wish.augmented else PLAIN_NUMBER)
    if wish.augmented and number > AUGMENTED_AT_MOST:
        raise WrongCall(
            f"-n {number} is more than one sheet holds with --augmented", remedy=f"-n {AUGMENTED_AT_MOST} or fewer"
        )
    drawn = np.random.default_rng(wish.seed).permutation(positions)
    chosen = drawn[np.argsort(_rounds(index.label[drawn]), kind="stable")][:number]
    return chosen[np.lexsort((chosen, index.label[chosen]))]


def _rounds(labels: NDArray[np.int64]) -> NDArray[np.int64]:
    """How often each label has come before.

    >>> _rounds(np.array([7, 3, 7, 7, 3])).tolist()
    [0, 0, 1, 2, 1]
    """
    by_label = np.argsort(labels, kind="stable")
    _, starts, counts = np.unique(labels[by_label], return_index=True, return_counts=True)
    rounds = np.empty(len(labels), np.int64)
    rounds[by_label] = np.arange(len(labels)) - np.repeat(starts, counts)
    return rounds


def _original(shard_set: ShardSet, index: SplitIndex, stored: ShardFiles, position: int) -> Tile:
    pixels = np.asarray(decoded(shard_set, index, stored, position))
    label = int(index.label[position])
    if label == NO_LABEL:
        return Tile(pixels, index.keys[position], "no label")
    entry = shard_set.manifest.classes[label]
    synset = "" if entry.synset == first_word(entry) else f" · {entry.synset}"
    return Tile(pixels, first_word(entry), f"label {label}{synset}")


def _variants(
    shard_set: ShardSet,
    index: SplitIndex,
    chosen: NDArray[np.int64],
    seed: int,
    on_images: Callable[[int], object],
) -> list[list[Tile]]:
    """What the loader makes of each chosen sample in the first epochs of a run with `seed`.

    A loader's state names any position of any epoch, so each sample is asked for where the run meets it: the
    batch size, which no draw depends on, is 1.
    """
    from ..pipeline import Loader

    mean = np.array(shard_set.manifest.statistics.channel_mean)
    tiles: list[list[Tile]] = [[] for _ in chosen]
    with Loader(shard_set, index.split, batch_size=1, seed=seed, mean="channel", threads=1, prefetch=1) as loader:
        for epoch in range(EPOCHS_SHOWN):
            order = loader.order_of(epoch).samples
            place = np.empty_like(order)
            place[order] = np.arange(len(order))
            for variants, position in zip(tiles, chosen, strict=True):
                loader.load_state_dict({**loader.state_dict(), "epoch": epoch, "position": int(place[position])})
                batch = next(iter(loader))
                assert batch.keys == [index.keys[position]]
                pixels = batch.images[0].numpy().transpose(1, 2, 0) / batch.scale + mean
                (y, x), jitter = batch.crop[0].tolist(), batch.offset[0].tolist()
                mirrored = ", mirrored" if bool(batch.mirror[0]) else ""
                colour = " ".join(f"{round(value):+d}" for value in jitter)
                variants.append(
                    Tile(
                        np.clip(np.round(pixels), 0, 255).astype(np.uint8),
                        f"y {y}, x {x}{mirrored}",
                        f"epoch {epoch}, colour {colour}",
                    )
                )
                on_images(1)
    return tiles
