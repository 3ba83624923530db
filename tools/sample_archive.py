"""`alexshard sample`: a small drawn set in the exact layout of the ILSVRC2010 archives.

    ILSVRC2010_images_train.tar      n90010423.tar …, each with n90010423_17211.JPEG …
    ILSVRC2010_images_val.tar        val/ILSVRC2010_val_00000001.JPEG …
    ILSVRC2010_images_test.tar       test/ILSVRC2010_test_00000001.JPEG …
    patch_images.tar                 patch_images/{train,val,test}/NAME.JPEG: what replaces spoiled members
    ILSVRC2010_devkit-1.0.tar.gz     devkit-1.0/readme.txt, devkit-1.0/data/meta.mat and
                                     devkit-1.0/data/ILSVRC2010_validation_ground_truth.txt
    ILSVRC2010_test_ground_truth.txt
    EXPECTED.json                    what a correct reader must find

It holds what makes the real archives awkward: members in no order, devkit ids that do not follow the order of
synsets, internal synsets that are no classes, greyscale and CMYK images, a PNG named .JPEG, a gzip-compressed
member, and originals that are spoiled and have a patch. Equal arguments give equal bytes as long as the versions
of NumPy, Pillow, SciPy and zlib (and the vector instructions they choose) are the same. The synsets (n9…) are none
of WordNet's.
"""

from __future__ import annotations

import gzip
import io
import json
import shutil
import tarfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import numpy as np
from PIL import Image

from ..shards import WrongCall, usable_cores
from .packing.disk import writing
from .sample_devkit import DevkitClass, devkit_archive, ground_truth
from .sample_images import Kind, kinds, picture

EXPECTED_NAME = "EXPECTED.json"
PART_NAME = ".alexshard-sample.part"  # where everything is written before it gets its name
MTIME = 1_262_304_000  # 1 January 2010, of every member
SPLITS = ("train", "val", "test")

# --------------------------------------------------------------------------
# Oddities and spoiled members
# --------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Oddity:
    """In what an image differs from the ordinary ones, which are drawn by lot."""

    size: tuple[int, int] | None = None  # width, height
    mode: str = "RGB"
    file_format: str = "JPEG"
    options: Mapping[str, Any] = field(default_factory=dict)
    gzipped: bool = False


ODDITIES: dict[str, dict[str, Oddity]] = {
    "train": {
        "gzip": Oddity(gzipped=True),
        "png": Oddity(file_format="PNG"),
        "cmyk": Oddity(mode="CMYK"),  # Pillow writes the Adobe marker and inverts the inks, as Photoshop does
        "greyscale-1": Oddity(mode="L"),
        "greyscale-2": Oddity(mode="L"),
        "progressive": Oddity(options={"progressive": True}),
        "subsampling-444": Oddity(options={"subsampling": "4:4:4"}),
        "subsampling-422": Oddity(options={"subsampling": "4:2:2"}),
        "tiny-75x56": Oddity(size=(75, 56)),
        "large-1600x1200": Oddity(size=(1600, 1200)),
        "wide-900x150": Oddity(size=(900, 150)),
    },
    "val": {"cmyk-val": Oddity(mode="CMYK"), "greyscale-val": Oddity(mode="L")},
    "test": {},
}


def _blank(good: bytes) -> bytes:
    """A white JPEG of the same size: it decodes well, so only the patch's name tells that it is spoiled."""
    with Image.open(io.BytesIO(good)) as image:
        return _encoded(Image.new("RGB", image.size, "white"), "JPEG", {"quality": 90})


def _cut_short(good: bytes) -> bytes:
    return good[: len(good) // 3]


SPOILERS: dict[str, Callable[[bytes], bytes]] = {"blank": _blank, "cut-short": _cut_short}
SPOILED: tuple[tuple[str, str], ...] = (
    ("train", "blank"),
    ("train", "cut-short"),
    ("train", "cut-short"),
    ("val", "blank"),
    ("test", "cut-short"),
)

# --------------------------------------------------------------------------
# The plan
# --------------------------------------------------------------------------


@dataclass(slots=True)
class Member:
    """One image of the set."""

    split: str
    label: int
    number: int  # in its name, and what its picture is drawn from
    name: str
    oddity: str = ""
    spoiled: str = ""


@dataclass(frozen=True, slots=True)
class Plan:
    """Which images there are, in the order in which the archives hold them."""

    seed: int
    classes: list[DevkitClass]  # by label
    kinds: list[Kind]  # by label
    inner_order: list[int]  # labels in the order of the inner tars
    members: dict[str, list[Member]]  # by split

    def of_class(self, label: int) -> list[Member]:
        return [member for member in self.members["train"] if member.label == label]


def plan_sample(counts: Mapping[str, int], num_classes: int, seed: int) -> Plan:
    """Decide everything but the pixels; a function of its arguments.

    Args:
        counts: images per split, spread over the classes as evenly as they go.
        num_classes: 2..100.
        seed: below 2**32.
    """
    rng = np.random.default_rng([seed, 0])
    ids = rng.permutation(num_classes) + 1
    if np.all(np.diff(ids) > 0):
        ids = ids[::-1]  # a reader that confuses devkit ids with labels must not pass by luck
    shown = kinds(num_classes)
    classes = [
        DevkitClass(f"n9{10_423 + 7_919 * label:07d}", kind.words, kind.gloss, int(ids[label]), kind.is_round)
        for label, kind in enumerate(shown)
    ]
    members: dict[str, list[Member]] = {}
    for split in SPLITS:
        labels = rng.permutation(np.arange(counts[split]) % num_classes)
        if split == "train":
            numbers = rng.choice(20_000 + 4 * counts[split], counts[split], replace=False)
            names = [f"{classes[label].wnid}_{number}.JPEG" for label, number in zip(labels, numbers, strict=True)]
        else:
            numbers = rng.permutation(counts[split]) + 1
            names = [f"ILSVRC2010_{split}_{number:08d}.JPEG" for number in numbers]
        members[split] = [
            Member(split, int(label), int(number), name)
            for label, number, name in zip(labels, numbers, names, strict=True)
        ]
        special = iter([members[split][place] for place in rng.permutation(counts[split])])
        # A split with fewer images than these has only the first of them; EXPECTED.json tells.
        manners = [manner for spoiled_split, manner in SPOILED if spoiled_split == split]
        for manner, member in zip(manners, special, strict=False):
            member.spoiled = manner
        for oddity, member in zip(ODDITIES[split], special, strict=False):
            member.oddity = oddity
    return Plan(seed, classes, shown, rng.permutation(num_classes).tolist(), members)


# --------------------------------------------------------------------------
# One image
# --------------------------------------------------------------------------


def sound_bytes(plan: Plan, member: Member) -> bytes:
    """The image of a member as it should be: a function of the plan's seed and the member alone."""
    rng = np.random.default_rng([plan.seed, 1, SPLITS.index(member.split), member.label, member.number])
    oddity = ODDITIES[member.split].get(member.oddity, Oddity())
    width, height = oddity.size or _size(rng)
    mode = "L" if not member.oddity and rng.random() < 0.02 else oddity.mode
    image = picture(plan.kinds[member.label], width, height, rng).convert(mode)
    options: dict[str, Any] = {
        "quality": int(rng.integers(75, 96)),
        "subsampling": str(rng.choice(["4:2:0", "4:4:4", "4:2:2"], p=[0.8, 0.12, 0.08])),
        "progressive": bool(rng.random() < 0.03),
        **oddity.options,
    }
    data = _encoded(image, oddity.file_format, options if oddity.file_format == "JPEG" else {})
    return gzip.compress(data, mtime=0) if oddity.gzipped else data


def stored_bytes(plan: Plan, member: Member) -> bytes:
    """The image of a member as the archive holds it: spoiled where there is a patch."""
    data = sound_bytes(plan, member)
    return SPOILERS[member.spoiled](data) if member.spoiled else data


def _size(rng: np.random.Generator) -> tuple[int, int]:
    """Width and height: mostly 300 to 500 at the longer side, some small, some larger, a third portrait."""
    low, high = ((300, 501), (100, 300), (500, 801))[rng.choice(3, p=[0.85, 0.1, 0.05])]
    longer = int(rng.integers(low, high))
    shorter = round(longer / rng.choice([1.0, 1.25, 4 / 3, 1.5, rng.uniform(1, 1.8)]))
    return (shorter, longer) if rng.random() < 1 / 3 else (longer, shorter)


def _encoded(image: Image.Image, file_format: str, options: Mapping[str, Any]) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, file_format, **options)
    return buffer.getvalue()


# --------------------------------------------------------------------------
# The archives
# --------------------------------------------------------------------------


def tar_member(name: str, size: int) -> tarfile.TarInfo:
    """The header of an ordinary file, or of a folder where the name ends in a slash."""
    info = tarfile.TarInfo(name)
    info.size, info.mtime, info.mode = size, MTIME, 0o644
    if name.endswith("/"):
        info.type, info.mode = tarfile.DIRTYPE, 0o755
    return info


def write_tar(file: IO[bytes], members: Iterable[tuple[str, bytes]]) -> None:
    """Write (name, bytes) as a GNU tar; a name that ends in a slash is a folder."""
    with tarfile.open(fileobj=file, mode="w", format=tarfile.GNU_FORMAT) as archive:
        for name, data in members:
            archive.addfile(tar_member(name, len(data)), io.BytesIO(data))


def draw_sample(
    dest: Path,
    counts: Mapping[str, int],
    *,
    num_classes: int = 10,
    seed: int = 0,
    on_images: Callable[[int], None] = lambda _number: None,
) -> dict[str, Any]:
    """Draw a set into `dest`, a new or empty folder; returns the content of EXPECTED.json.

    The files get their names at the end, EXPECTED.json last; an exception leaves `dest` as it was.

    Args:
        counts: images of `train`, `val` and `test`, each at least one.
        on_images: called with the number of images drawn since the last call.

    Raises:
        WrongCall: `dest` is a file or is not empty, or a class would have no training image.
        AlexshardError: `dest` cannot be written to.
    """
    if counts["train"] < num_classes:
        raise WrongCall(
            f"{counts['train']} training images are too few for {num_classes} classes",
            why="a class without images cannot be packed",
            remedy=f"--train {num_classes} or more, or fewer --classes",
        )
    plan = plan_sample(counts, num_classes, seed)
    threads = usable_cores()
    with writing(str(dest), dest), _emerging(dest) as folder, ThreadPoolExecutor(threads) as pool:

        def draw(members: list[Member], make: Callable[[Plan, Member], bytes]) -> Iterator[tuple[Member, bytes]]:
            # Drawing and encoding leave Python's lock for most of their time, so threads do.
            futures = [pool.submit(make, plan, member) for member in members]
            for member, future in zip(members, futures, strict=True):
                yield member, future.result()
                on_images(1)

        try:
            _write_archives(folder, plan, draw)
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
        expected = expectation(plan)
        text = json.dumps(expected, indent=1, ensure_ascii=False) + "\n"
        (folder / EXPECTED_NAME).write_text(text, encoding="utf-8")
    return expected


Draw = Callable[[list[Member], Callable[[Plan, Member], bytes]], Iterator[tuple[Member, bytes]]]


def _write_archives(folder: Path, plan: Plan, draw: Draw) -> None:
    inner_path = folder / "inner.tar"
    with tarfile.open(folder / "ILSVRC2010_images_train.tar", "w", format=tarfile.GNU_FORMAT) as outer:
        for label in plan.inner_order:
            with inner_path.open("w+b") as inner:
                write_tar(inner, ((m.name, data) for m, data in draw(plan.of_class(label), stored_bytes)))
                size = inner.tell()
                inner.seek(0)
                outer.addfile(tar_member(f"{plan.classes[label].wnid}.tar", size), inner)
    inner_path.unlink()

    truths = {}
    for split in ("val", "test"):
        members = plan.members[split]
        with (folder / f"ILSVRC2010_images_{split}.tar").open("wb") as file:
            write_tar(file, _in_folder(split, draw(members, stored_bytes)))
        truths[split] = ground_truth(plan.classes, [m.label for m in sorted(members, key=lambda m: m.number)])
    (folder / "ILSVRC2010_test_ground_truth.txt").write_bytes(truths["test"])

    with (folder / "patch_images.tar").open("wb") as file:
        patched = [member for split in SPLITS for member in plan.members[split] if member.spoiled]
        patches = [(f"patch_images/{m.split}/{m.name}", sound_bytes(plan, m)) for m in patched]
        folders = [(f"patch_images/{name}", b"") for name in ("", "train/", "val/", "test/")]
        write_tar(file, [*folders, *patches])

    train_counts = Counter(member.label for member in plan.members["train"])
    kit = devkit_archive(plan.classes, train_counts, truths["val"], write_tar, MTIME)
    (folder / "ILSVRC2010_devkit-1.0.tar.gz").write_bytes(kit)


def _in_folder(folder: str, images: Iterator[tuple[Member, bytes]]) -> Iterator[tuple[str, bytes]]:
    yield f"{folder}/", b""
    for member, data in images:
        yield f"{folder}/{member.name}", data


@contextmanager
def _emerging(dest: Path) -> Iterator[Path]:
    """A folder inside `dest` whose files move up once the block is through; nothing of it stays otherwise."""
    part = dest / PART_NAME
    if dest.exists() and not dest.is_dir():
        raise WrongCall(f"{dest} is a file", remedy="give a new or an empty folder")
    if dest.is_dir() and any(path != part for path in dest.iterdir()):
        raise WrongCall(
            f"{dest} is not empty",
            why="the archives of two sets would get mixed up",
            remedy="give a new or an empty folder",
        )
    new = not dest.exists()
    shutil.rmtree(part, ignore_errors=True)  # of a run that was killed
    part.mkdir(parents=True)
    try:
        yield part
        for path in sorted(part.iterdir(), key=lambda path: path.name == EXPECTED_NAME):
            path.rename(dest / path.name)
        part.rmdir()
    except BaseException:
        shutil.rmtree(dest if new else part, ignore_errors=True)
        raise


def expectation(plan: Plan) -> dict[str, Any]:
    """What a correct reader of the set must find."""
    everyone = [member for split in SPLITS for member in plan.members[split]]
    splits = {}
    for split, members in plan.members.items():
        per_class = Counter(plan.classes[member.label].wnid for member in members)
        splits[split] = {
            "images": len(members),
            "patched": sum(bool(member.spoiled) for member in members),
            "quarantined": 0,
            "per_class": dict(sorted(per_class.items())),
        }
    return {
        "kind": "sample",
        "scale": 1,
        "seed": plan.seed,
        "classes": [entry.wnid for entry in plan.classes],
        "splits": splits,
        "labels": {s: {m.name: m.label for m in plan.members[s]} for s in ("val", "test")},
        "devkit_ids": {entry.wnid: entry.devkit_id for entry in plan.classes},
        "patches": [{"split": m.split, "name": m.name, "spoiled": m.spoiled} for m in everyone if m.spoiled],
        "oddities": {m.oddity: {"split": m.split, "name": m.name} for m in everyone if m.oddity},
    }
