"""Images of any kind to the classes that a trained network finds most probable.

in     files    what packing reads: JPEG, PNG, WebP, BMP, gzip-compressed or not, under any name
       squares  uint8, RGB, (N, H, H, 3), H the side that the network's training images were stored at
       views    float32, RGB, (N, V, 3, S, S): the centre, or ten; the mean subtracted
out    Prediction  the labels of an image, the most probable first

Squares are made by the functions that pack a shard set, but not compressed afterwards; views are those of
evaluation (fidelity.md §3.3, §4). Nothing here imports torch before a network is asked.
"""

from __future__ import annotations

import shlex
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from stat import S_ISDIR, S_ISREG
from typing import TYPE_CHECKING, Literal
from unicodedata import normalize

import numpy as np
from numpy.typing import NDArray

from ..shards import AlexshardError, ClassEntry, WrongCall, open_regular, usable_cores
from .packing.decode import STORED_LIMIT, BadImage, Decoded, decode
from .packing.image import central_square
from .show import find_label

if TYPE_CHECKING:
    from torch import Tensor, nn

    from ..trainer import Checkpoint

VIEWS_AT_ONCE = 128  # through the network: some 100 MB of images and activations at full width
_COARSEST = 1  # a side so small that a JPEG is decoded at 1/8: all of it is read, the least is computed
_GLOB = set("*?[")


@dataclass(frozen=True, slots=True)
class Guess:
    """A class and how probable it is."""

    label: int
    synset: str
    words: str
    probability: float  # 0..1


@dataclass(frozen=True, slots=True)
class Prediction:
    """What a network makes of one image."""

    file: Path
    top: tuple[Guess, ...]  # the most probable first; of equal ones the lowest label


def check_images(files: Sequence[Path]) -> None:
    """See that every file is a sound image, so that no time is spent on a network that could not answer for all.

    First all are looked up, then all are decoded, at 1/8 where a JPEG allows it.

    Raises:
        WrongCall: a file is missing, or is a folder or a device.
        BadImage: a file is no image, is damaged, or would take too much memory.
        AlexshardError: a file cannot be read, or memory runs out.
    """
    for file in files:
        _check_file(file)
    with _readers() as pool:
        deque(pool.map(partial(decoded, side=_COARSEST), files), maxlen=0)


def decoded(file: Path, side: int) -> Decoded:
    """The pixels of an image file, as many as a square of `side` needs.

    Raises:
        as `check_images`.
    """
    _check_file(file)
    try:
        with open_regular(file) as stored:
            data = stored.read(STORED_LIMIT + 1)
    except OSError as error:
        raise _unreadable(file, error) from None
    try:
        if len(data) > STORED_LIMIT:
            raise BadImage(f"more than {STORED_LIMIT:,} bytes, which no image has")
        return decode(data, side=side)
    except BadImage as bad:
        raise BadImage(
            f"{file} cannot be read as an image: {bad.what}",
            where=str(file.absolute()),
            why="nothing is predicted unless every image can be",
            remedy="leave it out, or put a sound JPEG, PNG, WebP or BMP in its place",
        ) from None
    except AlexshardError as error:
        raise AlexshardError(
            f"{file}: {error.what}", where=str(file.absolute()), remedy="predict it where there is more memory"
        ) from None


def square(file: Path, side: int) -> NDArray[np.uint8]:
    """The central square of an image file, as a shard set with images of `side` stores it; (side, side, 3), RGB.

    Raises:
        as `check_images`.
    """
    found = decoded(file, side)
    size = (found.width, found.height)
    return central_square(found.pixels_HWC, side, size=size, reduction=found.reduction)[..., :3]


@dataclass(frozen=True, slots=True, eq=False)
class Preparation:
    """How squares become what a network was trained to see, by the recipe of its training."""

    stored_side: int
    side: int  # of a view
    places: tuple[tuple[int, int, bool], ...]  # (y, x, mirrored) of each view
    own_mean: Tensor | None  # float32 (3, H, H): subtracted under the view, before it is mirrored
    central_mean: Tensor | None  # float32 (3, S, S): subtracted from every view

    @classmethod
    def of(cls, checkpoint: Checkpoint, views: Literal[1, 10]) -> Preparation:
        """As the evaluation of this checkpoint prepares images, for one central view or the ten."""
        from ..pipeline import centre, ten_views

        slack = checkpoint.stored_side - checkpoint.side
        middle = centre(slack)
        own = checkpoint.recipe.mean == "image" and checkpoint.recipe.mean_crop == "own"
        return cls(
            checkpoint.stored_side,
            checkpoint.side,
            ten_views(slack) if views == 10 else ((middle, middle, False),),
            checkpoint.mean_image.permute(2, 0, 1) if own else None,
            None if own else checkpoint.centre_mean(),
        )

    def views_of(self, squares_NHWC: Tensor) -> Tensor:
        """The views of uint8 squares, float32 (N, V, 3, S, S), on their device."""
        import torch

        planes = squares_NHWC.permute(0, 3, 1, 2).float()
        if self.own_mean is not None:
            planes = planes - self.own_mean.to(planes.device)
        crops = []
        for y, x, mirrored in self.places:
            crop = planes[..., y : y + self.side, x : x + self.side]
            crops.append(crop.flip(-1) if mirrored else crop)
        views = torch.stack(crops, 1)
        return views if self.central_mean is None else views - self.central_mean.to(planes.device)


def probabilities(network: nn.Module, views_NVCHW: Tensor) -> Tensor:
    """Of every class, the mean over the views of the softmax; float64 (N, classes), on the CPU.

    Raises:
        AlexshardError: outputs are not finite.
    """
    import torch

    count, many = views_NVCHW.shape[:2]
    network.eval()
    with torch.inference_mode():
        logits = network(views_NVCHW.flatten(0, 1)).unflatten(0, (count, many)).double()
        found = torch.softmax(logits, -1).mean(1).cpu()
    if not found.isfinite().all():
        raise AlexshardError(
            "outputs of the network are not finite",
            why="an output that is no number names no class",
            remedy="predict with an earlier checkpoint; the run had diverged",
        )
    return found


def predict(
    network: nn.Module,
    files: Sequence[Path],
    preparation: Preparation,
    classes: Sequence[ClassEntry],
    *,
    top: int,
    device: str = "cpu",
    on_images: Callable[[int], object] = int,
) -> list[Prediction]:
    """The `top` most probable classes of each file (all, where there are fewer), in the order of the files.

    Args:
        network: on `device`; takes float32 (N, 3, S, S), gives logits.
        classes: in the order of labels.
        on_images: counts along.

    Raises:
        as `check_images` and `probabilities`.
    """
    import torch

    predictions = []
    size = max(1, VIEWS_AT_ONCE // len(preparation.places))
    for start in range(0, len(files), size):
        batch = files[start : start + size]
        squares = torch.from_numpy(_squares(batch, preparation.stored_side))
        views = preparation.views_of(squares.to(device))
        chances, labels = probabilities(network, views).sort(dim=1, descending=True, stable=True)
        for file, row, order in zip(batch, chances[:, :top].tolist(), labels[:, :top].tolist(), strict=True):
            guesses = [
                Guess(label, classes[label].synset, classes[label].words, chance)
                for label, chance in zip(order, row, strict=True)
            ]
            predictions.append(Prediction(file, tuple(guesses)))
        on_images(len(batch))
    return predictions


def correct_labels(files: Sequence[Path], classes: Sequence[ClassEntry], asked: str | None) -> list[int | None]:
    """The label of each file: the one asked for, else that of the folder it lies in, where a class is called so.

    Raises:
        WrongCall: no class is called as asked for, or several are.
    """
    if asked is not None:
        try:
            label = find_label(Path(), classes, asked)
        except WrongCall as error:
            # Its remedy lists the classes of a shard set, which need not be on this machine.
            remedy = error.remedy if error.remedy.startswith("--label") else "--label with a synset of the network"
            count = f"{len(classes):,} {'class' if len(classes) == 1 else 'classes'}"
            raise WrongCall(error.what, why=f"the network knows {count}", remedy=remedy) from None
        return [label] * len(files)
    by_synset = {entry.synset: label for label, entry in enumerate(classes)}
    return [by_synset.get(normalize("NFC", file.absolute().parent.name)) for file in files]


def _squares(files: Sequence[Path], side: int) -> NDArray[np.uint8]:
    with _readers() as pool:
        return np.stack(list(pool.map(partial(square, side=side), files)))


@contextmanager
def _readers() -> Iterator[ThreadPoolExecutor]:
    """Threads that decode; ends when they have."""
    # The decoder silences Pillow's warnings, and puts them back as it found them: of several threads the last to
    # do so may have found another's silence, so all of them are put back here.
    with warnings.catch_warnings(), ThreadPoolExecutor(usable_cores(), "alexshard-predict") as pool:
        warnings.simplefilter("ignore")
        yield pool


def _check_file(file: Path) -> None:
    """See that there is a file that can be an image.

    Raises:
        WrongCall, BadImage, AlexshardError: as `check_images`.
    """
    try:
        status = file.stat()
    except (FileNotFoundError, NotADirectoryError):
        pattern = _GLOB & set(str(file))
        raise WrongCall(
            f"there is no image {file}",
            where=str(file.absolute()),
            remedy="a pattern that names files: the shell found none" if pattern else "check the path",
        ) from None
    except OSError as error:
        raise _unreadable(file, error) from None
    if S_ISDIR(status.st_mode):
        raise WrongCall(
            f"{file} is a folder",
            why="images are named one by one, and told in that order",
            remedy=f"let the shell name them: {shlex.quote(str(file))}/*",
        )
    if not S_ISREG(status.st_mode):
        raise WrongCall(
            f"{file} is no regular file", why="an image is read twice", remedy="save it as a file, and name that"
        )


def _unreadable(file: Path, error: OSError) -> AlexshardError:
    return AlexshardError(
        f"{file} cannot be read: {error.strerror or error}",
        where=str(file.absolute()),
        remedy="make it readable, or leave it out",
    )
