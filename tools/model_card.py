"""What an export says of itself: the model card, the words in the network's file, the way from image to input.

Numbers are those of the run; what it does not know is called unknown. Markdown with a YAML head as the Hugging
Face hub reads it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..shards import ClassEntry, printable
from ..trainer import FORMS, PRESETS, Checkpoint, Recipe, differences, versions
from .show import first_word

# fidelity.md, §0 and its head: the published figures of the network that both presets describe.
_PUBLISHED = (
    "The paper's network had 39.0 / 18.3 % top-1 / top-5 error on the ILSVRC-2010 test images with one view and "
    "37.5 / 17.0 % with ten, and 40.7 / 18.2 % on ILSVRC-2012's validation images with ten. These are not this "
    "network's figures."
)
_CHOSEN = (
    "It is the network of the run's best validation: of all that were evaluated it was chosen by these same "
    "images, so its error is a little flattered, and likely to be higher on images that chose nothing."
)
_CLASSES_TOLD = 10  # of the classes, by name
_NEUTRAL = {"seed", "precision", "order", "window"}  # fields that leave the recipe the published one

_SNIPPETS = {
    "safetensors": """\
import torch
from example import alexnet, central_crop  # example.py, beside this file

network = alexnet("network.safetensors")
image = torch.from_numpy(central_crop("image.jpg", {stored_side}, {side}))
with torch.no_grad():
    print(network(image[None]).softmax(1).topk({top}))""",
    "torch-export": """\
import torch
from example import central_crop  # example.py, beside this file

network = torch.export.load("network.pt2").module()
image = torch.from_numpy(central_crop("image.jpg", {stored_side}, {side}))
with torch.no_grad():
    print(network(image[None]).softmax(1).topk({top}))""",
    "onnx": """\
import onnxruntime
from example import central_crop  # example.py, beside this file

session = onnxruntime.InferenceSession("network.onnx")
image = central_crop("image.jpg", {stored_side}, {side})
(logits,) = session.run(["logits"], {{"images": image[None]}})
print((-logits[0]).argsort()[:{top}])""",
}
_INSTALL = {
    "safetensors": "torch safetensors numpy pillow",
    "torch-export": "torch numpy pillow",
    "onnx": "onnxruntime numpy pillow",
}

_CARD = """\
---
library_name: {library}
pipeline_tag: image-classification
license: unknown
tags:
- alexnet
- image-classification
---

# AlexNet, {preset}, {counted_classes}

{what}

| | |
| --- | --- |
{facts}

## Data

{data}

## Training

{training}

| {moment} | {groups} | colour jitter |
| --- | {rules} | --- |
{rates}

## Error

{error}

## Preprocessing

An image's shorter side is resized to {stored_side} pixels, bicubic and antialiased; of that the central square,
and of it the central {side}×{side} pixels. EXIF's orientation is ignored, alpha is dropped, grey is repeated: as
in training. The network takes float32 of the shape (N, 3, {side}, {side}), R, G, B, **0..255, with nothing
subtracted**: it subtracts {subtracted} itself. It gives logits, (N, {classes}), in the order of
`classes.json`; N may be any number.

## Use

```sh
pip install {install}
python example.py IMAGE…
```

```python
{snippet}
```

`{file}` was read again after it was written: for random images its logits differ from those of the network that
was trained by at most {difference:.2g}.

## Limits

- It names one of its {counted_classes} for any image whatever, also for one that shows none of them. Its
  probabilities have not been calibrated.
- It is an architecture of 2012, trained to study that year's method: no product, and nothing by which to judge
  people.
- {measured} What its training images leave out or show one-sidedly it has not learnt.
- Licence: that of the weights is unknown, because that of the images is not known here; alexshard's code is
  Apache-2.0. If the images are ImageNet's, its terms of access hold: non-commercial research and education.

## Versions

{versions}.
"""


def model_card(
    checkpoint: Checkpoint, to: str, *, largest_difference: float, versions: Mapping[str, str], best: bool = False
) -> str:
    """README.md of an export in the form `to`; `best`: the network was chosen by its validation error."""
    recipe, numbers = checkpoint.recipe, {"stored_side": checkpoint.stored_side, "side": checkpoint.side}
    groups = list(recipe.schedule[0].rates)
    return _CARD.format(
        **numbers,
        library="onnx" if to == "onnx" else "pytorch",
        preset=f"`{recipe.preset}`",
        classes=checkpoint.num_classes,
        counted_classes=_counted(checkpoint.num_classes, "class", "classes"),
        what=_what(recipe),
        facts=_rows(_facts(checkpoint)),
        data=_data(checkpoint),
        training=_training(checkpoint),
        moment="from drop" if recipe.drop_on == "plateau" else "from epoch",
        groups=" | ".join(groups),
        rules=" | ".join("---" for _ in groups),
        rates=_rates(recipe),
        error=_error(checkpoint, best=best),
        measured=_measured(checkpoint),
        subtracted=preprocessing(checkpoint)["subtracted_by_network"],
        install=_INSTALL[to],
        snippet=_SNIPPETS[to].format(**numbers, top=min(5, checkpoint.num_classes)),
        file=FORMS[to].file,
        difference=largest_difference,
        versions=", ".join(f"{name} {version}" for name, version in versions.items()),
    )


def about_network(checkpoint: Checkpoint) -> dict[str, str]:
    """What a network's file says of itself, in words."""
    return {
        "made_by": f"alexshard {versions()['alexshard']}, alextrain export",
        "preset": checkpoint.recipe.preset,
        "width": str(checkpoint.recipe.width),
        "classes": str(checkpoint.num_classes),
        "stored_side": str(checkpoint.stored_side),
        "side": str(checkpoint.side),
        "step": str(checkpoint.step),
        "shard_set": checkpoint.shard_set,
    }


def preprocessing(checkpoint: Checkpoint) -> dict[str, Any]:
    """From an image file to the network's input: preprocessing.json."""
    mean = {
        "image": "the central crop of the training images' mean image",
        "channel": "the three channel means of the training images",
    }
    return {
        "schema": 1,
        "input": "float32 (N, 3, side, side)",
        "stored_side": checkpoint.stored_side,
        "side": checkpoint.side,
        "resampling": "bicubic, shorter side to stored_side, central square",
        "crop": "the central side × side pixels of that square",
        "colour_order": "RGB",
        "value_range": [0, 255],
        "subtracted_by_network": mean[checkpoint.recipe.mean],
        "ignored": "EXIF orientation, colour profiles, alpha, as in training",
    }


def _what(recipe: Recipe) -> str:
    whence = {
        "original": "as the configuration that produced the paper's numbers (145-2010 of the 2012 source) has it",
        "paper": "as the text of the paper has it",
    }.get(recipe.preset, f"by alexshard's preset `{recipe.preset}`")
    changed = [] if recipe.preset not in PRESETS else differences(PRESETS[recipe.preset](), recipe)
    told = f" Changed in this run: {'; '.join(_cell(one) for one in changed)}." if changed else ""
    return (
        "The network of Krizhevsky, Sutskever and Hinton, *ImageNet Classification with Deep Convolutional Neural "
        f"Networks* (2012), {whence}.{told}"
    )


def _facts(checkpoint: Checkpoint) -> dict[str, str]:
    recipe, network = checkpoint.recipe, checkpoint.network
    convolutions = [name for name in network if name.startswith("conv") and name.endswith(".weight")]
    maps = ", ".join(str(len(network[name])) for name in sorted(convolutions))
    units = ", ".join(str(len(network[f"fc{number}.weight"])) for number in (6, 7, 8))
    normalised = f"LRN over {recipe.lrn_n} maps, k = {recipe.lrn_k:g}, a = {recipe.lrn_a:g} per square, beta = 3/4"
    if recipe.same_map_a is not None:
        normalised += f"; behind conv2 also over {recipe.same_map_n}×{recipe.same_map_n} pixels of a map"
    return {
        "width": _width(recipe),
        "convolutions": f"{len(convolutions)}, with {maps} maps in two towers",
        "fully connected": f"3, with {units} units",
        "parameters": f"{sum(tensor.numel() for tensor in network.values()):,}",
        "normalisation": normalised,
        "input": f"{checkpoint.side}×{checkpoint.side} RGB",
    }


def _width(recipe: Recipe) -> str:
    # At width 1 all counts of 2012 are multiples of 8 and stay as they are (trainer/network.py, `scaled_width`).
    if recipe.width == 1:
        return "that of 2012"
    return f"factor {recipe.width:g} on the counts of 2012, each rounded to a multiple of 8 a tower, at least 8"


def _data(checkpoint: Checkpoint) -> str:
    names = [first_word(ClassEntry(*each, None)) for each in checkpoint.classes[:_CLASSES_TOLD]]
    told = "; ".join(map(_cell, names))
    if more := checkpoint.num_classes - len(names):
        told += f"; and {more:,} more in classes.json"
    images = _counted(checkpoint.training_images, "training image", "training images")
    classes = _counted(checkpoint.num_classes, "class", "classes")
    return (
        f"The shard set {_cell(checkpoint.set_name)} (digest {_cell(checkpoint.shard_set)}): {images} of "
        f"{classes}, stored as squares of {checkpoint.stored_side} pixels, seen by the network in crops of "
        f"{checkpoint.side}. "
        f"The classes are: {told}. Where the images come from the run does not record."
    )


def _training(checkpoint: Checkpoint) -> str:
    recipe, epochs = checkpoint.recipe, checkpoint.step / checkpoint.steps_per_epoch
    told = [
        f"{_counted(checkpoint.step, 'step', 'steps')} of {_counted(recipe.batch_size, 'image', 'images')}: "
        f"{epochs:.4g} of {_counted(recipe.epochs, 'epoch', 'epochs')}",
        f"seed {recipe.seed}, {recipe.precision}",
        f"momentum {recipe.momentum:g}, weight decay {recipe.weight_decay:g} on weights",
        f"augmentation {f'of `{recipe.augment}`' if recipe.augment else 'none'}",
        f"dropout {'0.5 in fc6 and fc7' if recipe.dropout else 'none'}",
    ]
    if recipe.init_from is not None:
        told.append(f"begun with the weights of the network {_cell(recipe.init_from)}")
    how = "Rates per step on the mean gradient of a batch, as planned for all epochs:"
    if recipe.drop_on == "plateau":
        how = (
            "Rates per step on the mean gradient of a batch. The table counts drops, not epochs: one is made when "
            f"the best validation error is more than {_counted(recipe.patience, 'epoch', 'epochs')} old. "
            f"{_drops(checkpoint)}"
        )
    return f"{'; '.join(told)}. {how}"


def _drops(checkpoint: Checkpoint) -> str:
    """Those that were made, in words."""
    made = [f"{step / checkpoint.steps_per_epoch:.4g}" for step in checkpoint.plateau.drops]
    if not made:
        return "None was made so far."
    if len(made) == 1:
        return f"One was made, after epoch {made[0]}."
    return f"{len(made)} were made, after the epochs {', '.join(made[:-1])} and {made[-1]}."


def _rates(recipe: Recipe) -> str:
    """A row for each segment of the schedule, moments in epochs of this run or in drops."""
    scale = 1 if recipe.drop_on == "plateau" else recipe.epochs / recipe.schedule_epochs
    groups = list(recipe.schedule[0].rates)
    rows = []
    for segment in recipe.schedule:
        rates = ("frozen" if segment.rates[group] is None else f"{segment.rates[group]:g}" for group in groups)
        jitter = "yes" if segment.jitter and recipe.augment is not None else "no"
        rows.append(f"| {segment.after * scale:.4g} | {' | '.join(rates)} | {jitter} |")
    return "\n".join(rows)


def _error(checkpoint: Checkpoint, *, best: bool) -> str:
    found, recipe = checkpoint.evaluation, checkpoint.recipe
    if found is None:
        told = "Not evaluated."
    else:
        state = f"this network, after step {checkpoint.step:,}"
        if found["step"] != checkpoint.step:
            state = f"an earlier one, after step {found['step']:,}; this network is that after {checkpoint.step:,}"
        rows = {
            "network": state,
            "split": _cell(str(found["split"])),
            "images": f"{found['samples']:,}",
            "views of an image": str(found["views"]),
            "top-1 error": f"{100 * found['top1_error']:.2f} %",
            "top-5 error": f"{100 * found['top5_error']:.2f} %",
            "loss": f"{found['loss']:.4f}",
        }
        told = f"| | |\n| --- | --- |\n{_rows(rows)}"
        told += f"\n\n{_CHOSEN}" if best else ""
    return f"{told}\n\n{_PUBLISHED}" if is_published(recipe, checkpoint.num_classes) else told


def _measured(checkpoint: Checkpoint) -> str:
    """Of which images its error is, to judge others by."""
    if checkpoint.evaluation is None:
        return "How often it errs was not measured."
    return "Its error was measured on images like those it was trained on."


def is_published(recipe: Recipe, num_classes: int) -> bool:
    """Whether it is the network of the paper, to the last constant that decides its error."""
    if recipe.preset not in ("original", "paper") or num_classes != 1000:
        return False
    changed = {line.partition(":")[0] for line in differences(PRESETS[recipe.preset](), recipe)}
    return changed <= _NEUTRAL


def _counted(number: int, one: str, several: str) -> str:
    return f"{number:,} {one if number == 1 else several}"


def _rows(facts: Mapping[str, str]) -> str:
    return "\n".join(f"| {name} | {value} |" for name, value in facts.items())


def _cell(text: str) -> str:
    """Words of a shard set, that can neither end a cell of a table nor begin anything of Markdown's."""
    return "".join(f"\\{letter}" if letter in "|`<>[]*_#" else letter for letter in printable(text))
