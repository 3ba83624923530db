"""The network learns: 64 real images of ten classes by heart, at a quarter width, without augmentation.

That `fidelity.md` describes a network that can is shown by measured.md §3.
"""

import dataclasses
import io
import tarfile

import numpy as np
import pytest
import torch
from alexshard.trainer import AlexNet, Recipe
from alexshard.trainer.schedule import Schedule
from alexshard.trainer.step import Stepper
from PIL import Image


@pytest.fixture(scope="module")
def batch(shared):
    """64 images of 224×224 with their mean subtracted, float32 (64, 3, 224, 224), and their labels."""
    with tarfile.open(shared / "data" / "images-ten.tar") as tar:
        names = sorted(member.name for member in tar if member.isfile() and member.name.startswith("train/"))
        synsets = sorted({name.split("/")[1] for name in names})
        of_synset = [[name for name in names if name.split("/")[1] == synset] for synset in synsets]
        labels = [place % 10 for place in range(64)]
        chosen = [of_synset[label][place // 10] for place, label in enumerate(labels)]
        pictures = [Image.open(io.BytesIO(tar.extractfile(name).read())).convert("RGB") for name in chosen]
    pixels = torch.from_numpy(np.stack([np.asarray(picture) for picture in pictures])).permute(0, 3, 1, 2).float()
    return pixels - pixels.mean(0), torch.tensor(labels)


@pytest.mark.parametrize(
    ("dropout", "within", "below"), [(False, 150, 0.01), pytest.param(True, 300, 0.2, marks=pytest.mark.slow)]
)
def test_original_learns_64_real_images_by_heart(batch, dropout, within, below):
    recipe = dataclasses.replace(
        Recipe.original(), width=0.25, batch_size=64, dropout=dropout
    ).with_constant_rate()
    stepper = Stepper(AlexNet(recipe, 10, 224), recipe, Schedule.of(recipe, steps_per_epoch=1))
    losses = []
    for step in range(within):
        losses.append(stepper.step(step, *batch)[0].item() / 64)
        if len(losses) >= 3 and max(losses[-3:]) < below:
            break

    assert max(losses[-3:]) < below
