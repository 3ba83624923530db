"""The same network in torch's stock modules, and torchvision's: what `tools/bench_train` compares with.

stock        the preset's AlexNet as one writes it with torch alone: nn.Conv2d and nn.Linear of the same shapes,
             nn.LocalResponseNorm a tower at a time, the same-map normaliser by avg_pool2d under autograd,
             F.max_pool2d, F.relu, F.dropout
torchvision  torchvision.models.alexnet: one tower, wider conv1 and conv2's input, no normalisers; other work

Both take images as (N, 3, S, S) in memory, run as torch comes to each operation, in bf16 under torch.autocast,
and are updated by torch.optim.SGD with its defaults (not fused) and momentum and decay of the recipe. They run in
this process, which has the C library keep what is freed, as `Machine.prepare` does: alone they would be slower.
"""

from __future__ import annotations

from copy import deepcopy
from importlib import import_module
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..trainer import AlexNet, Chain, Recipe

STOCK = (
    "the same network in nn.Conv2d, nn.LocalResponseNorm (per tower), avg_pool2d, max_pool2d, relu, dropout and "
    "nn.Linear, NCHW in memory, torch.autocast for bf16, torch.optim.SGD with its defaults; never compiled"
)
NOT_INSTALLED = "not installed"


class Stock(nn.Module):
    """`network`'s layers, copied, with stock modules between them.

    Dropout is torch's: kept units are doubled in training, where the paper's are halved at test; the time is the
    same. Without dropout outputs and gradients are those of `network`.
    """

    def __init__(self, network: AlexNet, *, dropout: bool = True) -> None:
        super().__init__()
        self.conv1, self.conv2, self.conv3 = map(deepcopy, (network.conv1, network.conv2, network.conv3))
        self.conv4, self.conv5 = map(deepcopy, (network.conv4, network.conv5))
        self.fc6, self.fc7, self.fc8 = map(deepcopy, (network.fc6, network.fc7, network.fc8))
        first, second, _ = network.chains
        self.norm1, self.norm2 = StockNormaliser(first), StockNormaliser(second)
        self.relu_first = first.relu == "before"
        self.pads = network.recipe.conv1_pad == "bottom-right"
        self.dropout = dropout

    def forward(self, images: Tensor) -> Tensor:
        """Logits, (N, classes)."""
        if self.pads:
            over = -(images.shape[-1] - 11) % 4
            images = F.pad(images, (0, over, 0, over))
        x = self.conv1(images)
        x = _pooled(self.norm1(F.relu(x))) if self.relu_first else F.relu(_pooled(self.norm1(x)))
        x = _pooled(self.norm2(F.relu(self.conv2(x))))
        x = F.relu(self.conv3(x))
        x = F.relu(self.conv4(x))
        x = _pooled(F.relu(self.conv5(x))).flatten(1)
        x = self._dropped(F.relu(self.fc6(x)))
        x = self._dropped(F.relu(self.fc7(x)))
        logits: Tensor = self.fc8(x)
        return logits

    def _dropped(self, x: Tensor) -> Tensor:
        return F.dropout(x, 0.5, self.training) if self.dropout else x


class StockNormaliser(nn.Module):
    """nn.LocalResponseNorm over each tower's maps, then the same-map normaliser where the chain has one."""

    def __init__(self, chain: Chain) -> None:
        super().__init__()
        self.towers, self.n, self.k, self.a = chain.towers, chain.same_n, chain.same_k, chain.same_a
        # torch divides alpha by the window's size: fidelity.md §2.1.
        self.across = nn.LocalResponseNorm(chain.n, alpha=chain.a * chain.n, beta=0.75, k=chain.k)

    def forward(self, x: Tensor) -> Tensor:
        own = x.reshape(x.shape[0] * self.towers, -1, *x.shape[2:])
        y: Tensor = self.across(own).reshape(x.shape)
        if self.n:
            squares = F.avg_pool2d(y.mul(y), self.n, stride=1, padding=self.n // 2, divisor_override=1)
            y = y / squares.mul(self.a).add(self.k).pow(0.75)
        return y


class StockSteps:
    """Steps of a network of stock modules; the counterpart of `Stepper`."""

    def __init__(self, network: nn.Module, recipe: Recipe, device: torch.device) -> None:
        self.network = network.to(device)
        self.sgd = torch.optim.SGD(
            self.network.parameters(),
            lr=recipe.learning_rate,
            momentum=recipe.momentum,
            weight_decay=recipe.weight_decay,
        )
        self._autocast: dict[str, Any] = {
            "device_type": device.type,
            "dtype": torch.bfloat16,
            "enabled": recipe.precision == "bf16",
        }

    def step(self, images: Tensor, labels: Tensor) -> Tensor:
        """One update; the loss before it, on the device."""
        self.network.train()
        with torch.autocast(**self._autocast):
            loss = F.cross_entropy(self.network(images), labels)
        loss.backward()  # type: ignore[no-untyped-call]
        self.sgd.step()
        self.sgd.zero_grad()
        return loss.detach()


def torchvision_alexnet(num_classes: int) -> nn.Module | None:
    """torchvision's network where it is installed. Its weights come from torch's global generator, put back."""
    if torchvision_version() == NOT_INSTALLED:
        return None
    models = import_module("torchvision.models")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        made: nn.Module = models.alexnet(num_classes=num_classes)
    return made


def torchvision_version() -> str:
    """Of torchvision, or that it is not there."""
    try:
        return str(import_module("torchvision").__version__)
    except ImportError:
        return NOT_INSTALLED


def _pooled(x: Tensor) -> Tensor:
    return F.max_pool2d(x, 3, 2, ceil_mode=True)
