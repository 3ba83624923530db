"""`alextrain export`: a run's network as a folder that needs no alexshard.

FOLDER/network.…            weights and operations, in one of FORMATS
       README.md            the model card
       example.py           images in, classes out: export_example.py
       classes.json         [{"synset", "words"}] by label
       preprocessing.json   what pixels the network wants

What is written is read again and asked about random images; where its logits are not those of the run's network
there is no export.
"""

from __future__ import annotations

import dataclasses
import importlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..shards import AlexshardError, WrongCall, is_another_running, sync_folder, unique_part_suffix
from ..trainer import (
    FORMS,
    Checkpoint,
    Constants,
    Form,
    Portable,
    RunFolder,
    build_network,
    load_checkpoint,
    versions,
)
from .model_card import about_network, model_card, preprocessing

# Of the largest logit. What was measured is about 1e-6 (docs/export.md): other orders of the same sums.
TOLERANCE = 1e-4
BATCHES = (1, 3)  # images of the check
TORCHVISION = "torchvision"
FORMATS = (*FORMS, TORCHVISION)
_BESIDE = ("README.md", "example.py", "classes.json", "preprocessing.json")
# What an earlier export may hold; python leaves the last one when example.py is imported.
_NAMES = {*_BESIDE, "__pycache__", *(name for form in FORMS.values() for name in (form.file, f"{form.file}.data"))}


@dataclass(frozen=True, slots=True)
class Exported:
    """What was written, and how near it is to the run's network."""

    to: str
    folder: Path
    files: dict[str, int]  # bytes by name
    step: int
    parameters: int
    largest_difference: float  # of a logit
    largest_logit: float
    allowed: float
    images: int  # that were asked about
    versions: dict[str, str]

    def to_json(self) -> dict[str, Any]:
        """The same as plain values."""
        return {**dataclasses.asdict(self), "folder": str(self.folder)}


def export(
    run: Path, to: str, out: Path | None = None, *, best: bool = False, say: Callable[[str], object] = print
) -> Exported:
    """Write the newest or the best network of a run folder, or that of a checkpoint file, to a folder of its own.

    Args:
        out: replaced where it holds an earlier export and nothing else; None: `export/FORMAT` in the run folder.

    Raises:
        WrongCall: an unknown format, a package that is missing, a folder that holds something else or whose name
            is not UTF-8, no run, or a form that the network cannot have.
        BadCheckpoint: the run's network cannot be read.
        AlexshardError: its outputs are not finite, or the export's are others.
    """
    if to not in FORMATS:
        raise WrongCall(f"unknown format {to!r}", remedy=f"one of {', '.join(FORMATS)}")
    if to == TORCHVISION:
        checkpoint = load_checkpoint(run, best=best, say=say)
        trained_network(checkpoint)
        raise refusal(checkpoint)
    form = FORMS[to]
    made_with = _versions(to, form)
    if out is None and run.is_file():
        raise WrongCall(f"{run} is a checkpoint file, and no folder to export into", remedy="name one by --out")
    folder = (out or run / "export" / to).resolve()
    _check_name(folder)
    _check_free(folder)
    checkpoint = load_checkpoint(run, best=best, say=say)
    batches = check_images(checkpoint.side)
    wanted = logits_of_run(checkpoint, batches)
    portable = Portable(Constants.of(checkpoint.recipe), checkpoint.network, checkpoint.centre_mean())
    with appearing_folder(folder) as part:
        with _third_party("written", part / form.file, made_with):
            form.write(portable, part / form.file, about_network(checkpoint))
        with _third_party("read again", part / form.file, made_with):
            network = form.load(part / form.file)
            found = [network(images) for images in batches]
        difference, largest = compare(wanted, found, to)
        classes = [{"synset": synset, "words": words} for synset, words in checkpoint.classes]
        _write_json(part / "classes.json", classes)
        _write_json(part / "preprocessing.json", preprocessing(checkpoint))
        shutil.copyfile(Path(__file__).with_name("export_example.py"), part / "example.py")
        chosen = best or (run.is_file() and run.name == RunFolder(run.parent).best.name)
        card = model_card(checkpoint, to, largest_difference=difference, versions=made_with, best=chosen)
        (part / "README.md").write_text(card, encoding="utf-8")
        for path in part.iterdir():
            path.chmod(part.stat().st_mode & 0o666)  # safetensors writes for the owner alone
        files = {path.name: path.stat().st_size for path in sorted(part.iterdir())}
    return Exported(
        to=to,
        folder=folder,
        files=files,
        step=checkpoint.step,
        parameters=sum(parameter.numel() for parameter in portable.parameters()),
        largest_difference=difference,
        largest_logit=largest,
        allowed=TOLERANCE * largest,
        images=sum(BATCHES),
        versions=made_with,
    )


def check_images(side: int) -> list[Tensor]:
    """Batches of float32 images, (N, 3, side, side), 0..255, always the same.

    One in two is of large blocks: pixels that vary alone average out in conv1, and reach the last layers faintly.
    """
    generator = torch.Generator().manual_seed(0)
    batches = []
    for count in BATCHES:
        noise = 255 * torch.rand(count, 3, side, side, generator=generator)
        blocks = 255 * torch.rand(count, 3, 4, 4, generator=generator)
        noise[1::2] = torch.nn.functional.interpolate(blocks, (side, side))[1::2]
        batches.append(noise)
    return batches


def trained_network(checkpoint: Checkpoint) -> nn.Module:
    """alexshard's own, in fp32 on the CPU.

    Raises:
        BadCheckpoint: the weights are those of another network than the recipe says.
    """
    recipe = dataclasses.replace(checkpoint.recipe, precision="fp32")
    network = build_network(recipe, checkpoint.num_classes, checkpoint.side, (torch.device("cpu"),)).eval()
    checkpoint.put_into(network)
    return network


def logits_of_run(checkpoint: Checkpoint, batches: list[Tensor]) -> list[Tensor]:
    """What that network answers.

    Raises:
        BadCheckpoint: as `trained_network`.
        AlexshardError: answers are not finite numbers.
    """
    network = trained_network(checkpoint)
    with torch.inference_mode():
        logits = [network(images - checkpoint.centre_mean()) for images in batches]
    if not all(part.isfinite().all() for part in logits):
        raise AlexshardError(
            f"outputs of the network after step {checkpoint.step:,} are not finite",
            why="a network that answers no numbers is of use to nobody",
            remedy="export an earlier checkpoint of the run: --best, or a file of its checkpoints folder",
        )
    return logits


def compare(wanted: list[Tensor], found: list[Tensor], to: str) -> tuple[float, float]:
    """The largest difference of two logits, and the largest logit.

    Raises:
        AlexshardError: they differ by more than TOLERANCE of the largest, or in shape.
    """
    largest = max(float(part.abs().max()) for part in wanted)
    shapes = [tuple(part.shape) for part in found]
    if shapes != [tuple(part.shape) for part in wanted]:
        difference = float("inf")
    else:
        difference = max(float((one - two).abs().max()) for one, two in zip(wanted, found, strict=True))
    if not difference <= TOLERANCE * largest:  # so that nan is too far
        raise AlexshardError(
            f"the {to} export answers otherwise: a logit differs by {difference:.3g}, of which up to "
            f"{TOLERANCE * largest:.3g} is rounding",
            where=f"{sum(BATCHES)} random images, in batches of {' and '.join(map(str, BATCHES))}",
            why="it would be another network than the one that was trained and evaluated",
            remedy="another --to, or other versions of the packages that wrote it; nothing was kept",
        )
    return difference, largest


def torchvision_shapes(num_classes: int) -> dict[str, tuple[int, ...]]:
    """The weights of torchvision's alexnet by the name that their layer has here."""
    return {
        "conv1": (64, 3, 11, 11),  # features.0
        "conv2": (192, 64, 5, 5),  # features.3
        "conv3": (384, 192, 3, 3),  # features.6
        "conv4": (256, 384, 3, 3),  # features.8
        "conv5": (256, 256, 3, 3),  # features.10
        "fc6": (4096, 256 * 6 * 6),  # classifier.1
        "fc7": (4096, 4096),  # classifier.4
        "fc8": (num_classes, 4096),  # classifier.6
    }


def refusal(checkpoint: Checkpoint) -> WrongCall:
    """Why this network cannot be a state dict of torchvision's alexnet; no network of alexshard can.

    Source: fidelity.md §1.1; torchvision's is that of "One weird trick" (2014), for one GPU.
    """
    differing = [
        f"{name} {_times(ours)} (there {_times(theirs)})"
        for name, theirs in torchvision_shapes(checkpoint.num_classes).items()
        if (ours := tuple(checkpoint.network[f"{name}.weight"].shape)) != theirs
    ]
    recipe = checkpoint.recipe
    operations = ["LRN behind conv1 and conv2", "two groups in conv2, conv4 and conv5"]
    operations += ["a same-map normaliser"] if recipe.same_map_a is not None else []
    operations += ["a sixth convolution"] if recipe.conv6 else []
    operations += ["padding of conv1 at the right and below alone"] if recipe.conv1_pad == "bottom-right" else []
    operations += ["outputs of fc6 and fc7 halved instead of inverted dropout"] if recipe.dropout else []
    return WrongCall(
        "torchvision's alexnet is another network, so this one's weights have no place in it",
        where=f"other shapes: {'; '.join(differing) or 'none'}",
        why=f"it has none of these: {', '.join(operations)}; the same weights would give other answers",
        remedy="--to torch-export loads with torch alone, without torchvision; --to safetensors has the weights "
        "by name, with an AlexNet of plain torch beside them",
    )


def _times(shape: tuple[int, ...]) -> str:
    return "×".join(map(str, shape))


@contextmanager
def appearing_folder(folder: Path) -> Iterator[Path]:
    """A folder that gets its name only when whole and on the disk; on an exception nothing remains.

    An earlier one is moved away first: killed between two renames, this leaves no folder, but never half of one.
    What a process that was killed has left beside it is removed.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    for left in folder.parent.glob("*.part-*-*-*"):
        name, _, suffix = left.name.rpartition(".part-")
        host, pid, _ = suffix.rsplit("-", 2)
        ours = unique_part_suffix().startswith(f".part-{host}-")
        if name == folder.name and ours and pid.isdecimal() and not is_another_running(int(pid)):
            shutil.rmtree(left, ignore_errors=True)
    part, earlier = (folder.with_name(folder.name + unique_part_suffix()) for _ in range(2))
    part.mkdir()
    try:
        yield part
        for path in part.iterdir():
            with path.open("rb") as file:
                os.fsync(file.fileno())
        sync_folder(part)
        _check_free(folder)  # it took a while
        if folder.exists():
            folder.rename(earlier)
        part.rename(folder)
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        if earlier.exists() and not folder.exists():
            earlier.rename(folder)
        raise
    sync_folder(folder.parent)
    shutil.rmtree(earlier, ignore_errors=True)


def _check_name(folder: Path) -> None:
    try:
        str(folder).encode()
    except UnicodeEncodeError:
        raise WrongCall(
            f"the name of the folder {folder} is not UTF-8",
            why="the libraries that write the network cannot open a file there",
            remedy="name another folder by --out",
        ) from None


def _check_free(folder: Path) -> None:
    if folder.is_dir():
        found = {path.name for path in folder.iterdir()}
        if not found or (found <= _NAMES and found >= set(_BESIDE)):
            return
        what = ", ".join(sorted(found - _NAMES)[:3] or sorted(found)[:3])
    elif folder.exists():
        what = "it is a file"
    else:
        return
    raise WrongCall(
        f"{folder} holds something else than an earlier export: {what}",
        why="an export replaces its folder",
        remedy="name another folder by --out, or move that one away",
    )


def _versions(to: str, form: Form) -> dict[str, str]:
    """Of what writes this form; all of it is imported here, so that nothing is missing later."""
    found, missing = {}, []
    for name in form.needs:
        try:
            found[name] = str(importlib.import_module(name).__version__)
        except ImportError:
            missing.append(name)
    if missing:
        raise WrongCall(
            f"--to {to} needs {' and '.join(missing)}, which cannot be imported",
            remedy="pip install 'alexshard[export]'",
        )
    return {**versions(), **found}


@contextmanager
def _third_party(done: str, path: Path, made_with: Mapping[str, str]) -> Iterator[None]:
    """What a library raises of its own, as one error that says which versions were at work."""
    try:
        yield
    except (AlexshardError, OSError):
        raise
    except Exception as error:
        said = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise AlexshardError(
            f"the network could not be {done}: {said}",
            where=f"{path.name}, by {', '.join(f'{name} {version}' for name, version in made_with.items())}",
            why="what cannot be read again is no export",
            remedy="is the disk full? Else another --to, or other versions of these packages; nothing was kept",
        ) from error


def _write_json(path: Path, content: object) -> None:
    path.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
