"""The development kit of `alexshard sample`: `meta.mat` and the ground truth, as ILSVRC2010's has them."""

from __future__ import annotations

import gzip
import io
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import IO, Any

import numpy as np

README = """Development kit of a set that `alexshard sample` drew.

data/meta.mat holds the synsets: the classes first, then internal synsets, which have no images of their own.
data/ILSVRC2010_validation_ground_truth.txt holds one ILSVRC2010_ID per validation image, in the order of the
sorted image names.
"""
FIRST_INTERNAL_ID = 1001
MAT_TEXT = b"MATLAB 5.0 MAT-file, written by alexshard sample"
MAT_TEXT_BYTES = 116  # of descriptive text at the start of a MAT-file of version 5


@dataclass(frozen=True, slots=True)
class DevkitClass:
    """One class as the development kit lists it."""

    wnid: str
    words: str
    gloss: str
    devkit_id: int  # 1.., not in the order of the synsets
    is_round: bool  # which internal synset it belongs to


def devkit_archive(
    classes: Sequence[DevkitClass],
    train_counts: Mapping[int, int],
    val_truth: bytes,
    write_tar: Callable[[IO[bytes], Iterable[tuple[str, bytes]]], None],
    mtime: int,
) -> bytes:
    """The gzip-compressed kit; `train_counts` is by label."""
    buffer = io.BytesIO()
    write_tar(
        buffer,
        [
            ("devkit-1.0/", b""),
            ("devkit-1.0/readme.txt", README.encode("ascii")),
            ("devkit-1.0/data/", b""),
            ("devkit-1.0/data/ILSVRC2010_validation_ground_truth.txt", val_truth),
            ("devkit-1.0/data/meta.mat", meta_mat(classes, train_counts)),
        ],
    )
    return gzip.compress(buffer.getvalue(), mtime=mtime)


def ground_truth(classes: Sequence[DevkitClass], labels: Iterable[int]) -> bytes:
    """One devkit id per line, in the order of the images' names."""
    return "".join(f"{classes[label].devkit_id}\n" for label in labels).encode("ascii")


def meta_mat(classes: Sequence[DevkitClass], train_counts: Mapping[int, int]) -> bytes:
    """The table of synsets and the cost matrix (height of the lowest common ancestor) as a MAT-file."""
    from scipy.io import savemat

    leaves = sorted(enumerate(classes), key=lambda place: place[1].devkit_id)
    rows = [
        _row(entry.devkit_id, entry.wnid, entry.words, entry.gloss, [], 0, train_counts.get(label, 0))
        for label, entry in leaves
    ]
    groups = {
        words: [entry.devkit_id for _, entry in leaves if entry.is_round == is_round]
        for words, is_round in (("round figure", True), ("figure with straight edges", False))
    }
    groups = {words: children for words, children in groups.items() if children}
    ids = list(range(FIRST_INTERNAL_ID, FIRST_INTERNAL_ID + 1 + len(groups)))
    rows.append(_row(ids[0], "n90000001", "figure, drawn figure", "anything that was drawn", ids[1:], 2, 0))
    for place, (words, children) in enumerate(groups.items(), start=1):
        rows.append(_row(ids[place], f"n9000000{place + 1}", words, f"a drawn {words}", children, 1, 0))

    synsets = np.empty((len(rows), 1), dtype=[(name, object) for name in rows[0]])
    for place, row in enumerate(rows):
        synsets[place, 0] = tuple(row.values())
    round_figures = np.array([entry.is_round for _, entry in leaves])
    cost = 2 - (round_figures[:, None] == round_figures).astype(np.uint8)
    np.fill_diagonal(cost, 0)
    buffer = io.BytesIO()
    savemat(buffer, {"synsets": synsets, "cost_matrix": cost.astype(np.uint8)}, do_compression=True)
    # SciPy writes the time of day into the text; equal arguments are to give equal bytes.
    return MAT_TEXT.ljust(MAT_TEXT_BYTES) + buffer.getvalue()[MAT_TEXT_BYTES:]


def _row(
    devkit_id: int, wnid: str, words: str, gloss: str, children: list[int], height: int, train_images: int
) -> dict[str, Any]:
    """One row of `synsets`; numbers are doubles, as MATLAB has them."""
    return {
        "ILSVRC2010_ID": float(devkit_id),
        "WNID": wnid,
        "words": words,
        "gloss": gloss,
        "num_children": float(len(children)),
        "children": np.array([sorted(children)], dtype=np.float64),
        "wordnet_height": float(height),
        "num_train_images": float(train_images),
    }
