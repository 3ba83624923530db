"""AlexNet: five or six convolutional and three fully connected layers in two towers, as one module.

in    images   float32, (N, 3, S, S), RGB, 0..255 with the mean subtracted; S = 224 in 2012
out   logits   float32, (N, classes), whatever the precision in between (precision.py)

The towers are the two halves of the maps. Layers that see their own tower only (conv2, conv4, conv5) are grouped
convolutions; conv3, conv6 and the fc layers see both. An `AlexNet` holds both towers, or one of them
(`tower=0 | 1`), with the same parameter names and that tower's rows of every parameter; fc8 belongs to tower 0.

    S = 224, both towers:   3×224² → 96×55² → 96×27² → 256×27² → 256×13² → 384×13² → 384×13² → 256×13² → 256×6²
                            = 9216 → 4096 → 4096 → 1000, 60,965,224 parameters
    with conv6              256×6² → 256×6² between pool5 and fc6, 61,555,304 parameters

Source: Krizhevsky, Sutskever, Hinton 2012 and the released 145-2010 configuration; fidelity.md §0–§2. conv6 is the
sixth convolutional layer of the nets that began on all of ImageNet, 1 CNN* of Table 2; fidelity.md §7.3.
"""

from __future__ import annotations

import math
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..shards import WrongCall
from .chains import Chain, normalise
from .dropout import Masks
from .precision import convolve, in_precision, multiply
from .recipe import LAYERS, Recipe

_LAYER_STRIDE = 0x9E3779B9  # 2³² / golden ratio: no two layers of seeds near one another share a draw
PER_TOWER = (48, 128, 192, 192, 128, 2048)  # conv1..conv5, and fc6 and fc7 alike
Pieces = dict[str, tuple[nn.Parameter, ...]]


class SideTooSmall(WrongCall):
    """The images are too small for three poolings."""

    def __init__(self, side: int) -> None:
        super().__init__(
            f"images of {side}×{side} pixels leave nothing after the third pooling",
            why="AlexNet's strides and poolings shrink the side about 32 times",
            remedy="pack at 39 pixels or more; --size 74 of alexshard build gives crops of 64",
        )


class AlexNet(nn.Module):
    """The network of one recipe, freshly initialised from the recipe's seed."""

    def __init__(self, recipe: Recipe, num_classes: int, side: int, *, tower: int | None = None) -> None:
        super().__init__()
        if num_classes < 1:
            raise WrongCall(f"a network for {num_classes} classes", remedy="train on a shard set that has labels")
        self.recipe, self.num_classes, self.side, self.tower = recipe, num_classes, side, tower
        self.precision = recipe.precision
        self.held = held = 2 if tower is None else 1
        c1, c2, c3, c4, c5, hidden = (scaled_width(count, recipe.width) for count in PER_TOWER)
        self.pool5_side = pool5_side(side)
        pad1 = 2 if recipe.conv1_pad == "symmetric" else 0
        # On "meta" no values are drawn: torch would take them from its global generator, and they are not wanted.
        with torch.device("meta"):
            self.conv1 = nn.Conv2d(3, held * c1, 11, stride=4, padding=pad1)
            self.conv2 = nn.Conv2d(held * c1, held * c2, 5, padding=2, groups=held)
            self.conv3 = nn.Conv2d(2 * c2, held * c3, 3, padding=1)
            self.conv4 = nn.Conv2d(held * c3, held * c4, 3, padding=1, groups=held)
            self.conv5 = nn.Conv2d(held * c4, held * c5, 3, padding=1, groups=held)
            if recipe.conv6:
                self.conv6 = nn.Conv2d(2 * c5, held * c5, 3, padding=1)
            self.fc6 = nn.Linear(2 * c5 * self.pool5_side**2, held * hidden)
            self.fc7 = nn.Linear(2 * hidden, held * hidden)
            if tower != 1:
                self.fc8 = nn.Linear(2 * hidden, num_classes)
        self.chains = _chains(recipe, held)
        self.to_empty(device="cpu")
        self._initialise()

    def forward(self, images: Tensor, masks: Masks | None = None) -> Tensor:
        """Logits, (N, classes); dropout by `masks` in training, outputs halved (`masks` None) at test."""
        maps = self.layers_3_to_5(self.layers_1_to_2(images))
        if self.recipe.conv6:
            maps = self.layer_conv6(maps)
        hidden = self.layer_7(self.layer_6(maps, masks), masks)
        return self.layer_8(hidden)

    # The five parts, six with conv6, between which the towers exchange what they have (fidelity.md §5).

    @in_precision
    def layers_1_to_2(self, images: Tensor) -> Tensor:
        """Images to the own towers' maps below conv3: (N, 256, 13, 13) for both towers."""
        # Neighbouring maps lie side by side: the normalisers run along them, convolutions take them as they are.
        images = images.contiguous(memory_format=torch.channels_last)
        if self.recipe.conv1_pad == "bottom-right":
            # The last window hangs over the right and lower edge and reads zeros there (§1.2).
            over = -(images.shape[-1] - 11) % 4
            images = F.pad(images, (0, over, 0, over))
        x = normalise(convolve(self.conv1, images), self.chains[0])
        return normalise(convolve(self.conv2, x), self.chains[1])

    @in_precision
    def layers_3_to_5(self, both: Tensor) -> Tensor:
        """Both towers' maps to the own towers' maps below fc6, or conv6: (N, 256, 6, 6) for both towers."""
        x = F.relu_(convolve(self.conv3, both))
        x = F.relu_(convolve(self.conv4, x))
        return normalise(convolve(self.conv5, x), self.chains[2])

    @in_precision
    def layer_conv6(self, both: Tensor) -> Tensor:
        """Both towers' maps to as many and as large of the own towers below fc6; where the recipe has conv6."""
        return F.relu_(convolve(self.conv6, both))

    @in_precision
    def layer_6(self, both: Tensor, masks: Masks | None) -> Tensor:
        """Both towers' maps, flattened as (map, y, x), to the own towers' 4,096 or 2,048 hidden units."""
        return self._dropout(F.relu_(multiply(self.fc6, both.flatten(1))), 6, masks)

    @in_precision
    def layer_7(self, both: Tensor, masks: Masks | None) -> Tensor:
        """Both towers' hidden units to the own towers' second hidden layer."""
        return self._dropout(F.relu_(multiply(self.fc7, both)), 7, masks)

    @in_precision
    def layer_8(self, both: Tensor) -> Tensor:
        """Both towers' hidden units to logits; tower 0 only."""
        logits = multiply(self.fc8, both)
        return logits.float() if logits.dtype == torch.bfloat16 else logits

    def pieces(self) -> Pieces:
        """Every parameter's pieces by name, to be joined along the first dimension; here one each."""
        return {name: (parameter,) for name, parameter in self.named_parameters()}

    def _dropout(self, x: Tensor, layer: int, masks: Masks | None) -> Tensor:
        if not self.recipe.dropout:
            return x
        if masks is None:
            if self.training and torch.is_grad_enabled():
                raise ValueError("training with dropout needs masks; call eval() for the test-time network")
            return x * 0.5
        units = x.shape[1]
        if self.tower is None:
            return x * masks.draw(layer, x.shape[0], units, x.device)
        kept = masks.draw(layer, x.shape[0], 2 * units, x.device)
        return x * kept[:, self.tower * units : (self.tower + 1) * units]

    @torch.no_grad()
    def _initialise(self) -> None:
        """Normal weights and constant biases by layer; a tower takes its rows of the whole layer's draw.

        torch's CPU generator is told apart by 32 bits. Adding a number of the layer to the seed modulo 2³² gives
        every layer another draw, and every seed other draws of each layer. conv6 has the last number: with it and
        without, all other layers begin alike.
        """
        stds = (*self.recipe.init_std, self.recipe.conv6_std)
        biases = (*self.recipe.init_bias, self.recipe.conv6_bias)
        for number, name in enumerate((*LAYERS, "conv6")):
            if not hasattr(self, name):
                continue
            layer = getattr(self, name)
            std = stds[number]
            if self.recipe.init_fan_in:
                std *= math.sqrt(_full_fan_in(number) / layer.weight[0].numel())
            parts = 1 if self.tower is None or name == "fc8" else 2
            weight = torch.empty(parts * layer.weight.shape[0], *layer.weight.shape[1:])
            generator = torch.Generator().manual_seed((self.recipe.seed + number * _LAYER_STRIDE) % 2**32)
            weight.normal_(0, std, generator=generator)
            layer.weight.copy_(weight.chunk(parts)[(self.tower or 0) if parts == 2 else 0])
            layer.bias.fill_(biases[number])


def scaled_width(count: int, width: float) -> int:
    """`count` times `width`, to the nearest multiple of 8, ties up, at least 8 (fidelity.md §1.3)."""
    return max(8, math.floor(count * width / 8 + 0.5) * 8)


def pooled_side(side: int, poolings: int) -> int:
    """The side of the maps behind so many poolings for images of `side` pixels (§1.3)."""
    maps = math.ceil((side - 11) / 4) + 1
    for _ in range(poolings):
        maps = math.ceil((maps - 3) / 2) + 1
    return maps


def pool5_side(side: int) -> int:
    """The side of the maps below fc6 for images of `side` pixels, a multiple of 4.

    Raises:
        SideTooSmall: nothing is left.
    """
    maps = pooled_side(side, 3)
    if maps < 1:
        raise SideTooSmall(side)
    return maps


def _chains(recipe: Recipe, towers: int) -> tuple[Chain, Chain, Chain]:
    """What follows conv1, conv2 and conv5 in networks of this recipe (§0, §2)."""
    lrn = Chain(towers, n=recipe.lrn_n, k=recipe.lrn_k, a=recipe.lrn_a, pool=True)
    second = replace(lrn, relu="before")
    if recipe.same_map_a is not None:
        second = replace(second, same_n=recipe.same_map_n, same_k=recipe.same_map_k, same_a=recipe.same_map_a)
    # `original` squares signed values: conv, LRN, pool, ReLU is conv, LRN, ReLU, pool, since max and ReLU commute.
    first = replace(lrn, relu="after" if recipe.layer1_order == "lrn-pool-relu" else "before")
    # For the same reason the presets' two orders are one behind conv5.
    return first, second, Chain(towers, relu="after", pool=True)


def _full_fan_in(number: int) -> int:
    """Inputs of one unit of the layer at width 1 and side 224; conv6 has the last number."""
    return (3 * 121, 48 * 25, 256 * 9, 192 * 9, 192 * 9, 9216, 4096, 4096, 256 * 9)[number]
