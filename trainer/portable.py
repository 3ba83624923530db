"""The network as plain torch, to be taken away: no operation of alexshard's, and the mean inside; and its files.

in    images   float32, (N, 3, S, S), RGB, 0..255, the central crop of the stored square; nothing subtracted
out   logits   float32, (N, classes)

Parameters have the names and shapes of `AlexNet`'s, both towers in one; the buffer `mean`, (3, S, S), is what the
first operation subtracts. This is the network at test time (fidelity.md §4): no masks, outputs of fc6 and fc7
halved. It computes in the precision of its parameters, float32 as built, and can be exported with any batch size.

FORMS are the files in which it can go, batches of any size in all of them:

safetensors    weights and mean; the constants are words in its metadata
torch-export   torch.export: weights and graph, for torch alone
onnx           the same for whatever runs ONNX, OPSET

Source: as network.py and lrn.py; tests/tools/test_export.py holds the two networks together.
"""

from __future__ import annotations

import dataclasses
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .lrn import BETA
from .recipe import Recipe

OPSET = 18  # what torch's exporter writes without converting
# A protocol buffer ends at 2 GiB: more weights than this lie in a file of their own, network.onnx.data.
LARGEST_ONNX_BYTES = 2**30

Logits = Callable[[Tensor], Tensor]  # images, (N, 3, S, S), 0..255, to logits, (N, classes)

_GROUPED = ("conv2", "conv4", "conv5")  # layers that see the maps of their own tower only
_PADDINGS = {"conv2": 2, "conv3": 1, "conv4": 1, "conv5": 1, "conv6": 1}


@dataclass(frozen=True, slots=True)
class Constants:
    """What a network of a recipe does beside its weights; with the weights' shapes this is all of it."""

    conv1_pad: str  # "bottom-right" or "symmetric"
    layer1_order: str  # "lrn-pool-relu" or "relu-lrn-pool"
    lrn_n: int
    lrn_k: float
    lrn_a: float  # per square: torch's alpha divided by n
    same_map_n: int
    same_map_k: float
    same_map_a: float | None  # None: no such normaliser
    beta: float  # of both normalisers
    fc_scale: float  # on the outputs of fc6 and fc7: a half where there was dropout in training

    @classmethod
    def of(cls, recipe: Recipe) -> Constants:
        """Those of a recipe's network."""
        own: dict[str, Any] = {"beta": BETA, "fc_scale": 0.5 if recipe.dropout else 1.0}
        names = [field.name for field in dataclasses.fields(cls) if field.name not in own]
        return cls(**own, **{name: getattr(recipe, name) for name in names})

    def to_words(self) -> dict[str, str]:
        """Names and values as words, for files whose metadata are words; what is None is left out."""
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return {name: str(value) for name, value in values.items() if value is not None}

    @classmethod
    def from_words(cls, words: Mapping[str, str]) -> Constants:
        """Those that `to_words` wrote, among other words."""
        kinds = {"conv1_pad": str, "layer1_order": str, "lrn_n": int, "same_map_n": int}
        names = [field.name for field in dataclasses.fields(cls)]
        values: dict[str, Any] = {name: kinds.get(name, float)(words[name]) for name in names if name in words}
        return cls(**{"same_map_a": None} | values)


class Portable(nn.Module):
    """A trained network without what trained it.

    Args:
        weights: by parameter, "conv1.weight" to "fc8.bias" as in a checkpoint; whether there is a conv6 they tell.
        mean: (3, S, S), what is subtracted from a central crop.
    """

    mean: Tensor
    conv1: nn.Conv2d
    conv2: nn.Conv2d
    conv3: nn.Conv2d
    conv4: nn.Conv2d
    conv5: nn.Conv2d
    conv6: nn.Conv2d  # there in a network that has one
    fc6: nn.Linear
    fc7: nn.Linear
    fc8: nn.Linear

    def __init__(self, constants: Constants, weights: Mapping[str, Tensor], mean: Tensor) -> None:
        super().__init__()
        self.constants, self.side = constants, mean.shape[-1]
        symmetric = constants.conv1_pad == "symmetric"
        # Where padding is not symmetric, conv1's last window hangs over the right and lower edge (§1.2).
        self.over = 0 if symmetric else -(self.side - 11) % 4
        with torch.device("meta"):  # no values are drawn, they come below
            for name in (key.removesuffix(".weight") for key in weights if key.endswith(".weight")):
                shape = weights[f"{name}.weight"].shape
                if name.startswith("fc"):
                    self.add_module(name, nn.Linear(shape[1], shape[0]))
                    continue
                groups = 2 if name in _GROUPED else 1
                stride, padding = (4, 2 if symmetric else 0) if name == "conv1" else (1, _PADDINGS[name])
                layer = nn.Conv2d(groups * shape[1], shape[0], shape[2], stride, padding, groups=groups)
                self.add_module(name, layer)
        self.to_empty(device="cpu")
        self.register_buffer("mean", torch.empty_like(mean, memory_format=torch.contiguous_format))
        self.load_state_dict({**weights, "mean": mean})
        self.eval()

    def forward(self, images: Tensor) -> Tensor:
        """Logits, (N, classes)."""
        x = F.pad(images - self.mean, (0, self.over, 0, self.over))  # zeros: the mean's colour
        x = self.conv1(x)
        if self.constants.layer1_order == "relu-lrn-pool":
            x = self._pooled(self._across_maps(F.relu(x)))
        else:
            x = F.relu(self._pooled(self._across_maps(x)))
        x = self._across_maps(F.relu(self.conv2(x)))
        if self.constants.same_map_a is not None:
            x = self._same_map(x, self.constants.same_map_a)
        x = self._pooled(x)
        x = F.relu(self.conv3(x))
        x = F.relu(self.conv4(x))
        x = self._pooled(F.relu(self.conv5(x)))
        if hasattr(self, "conv6"):
            x = F.relu(self.conv6(x))
        x = F.relu(self.fc6(x.flatten(1))) * self.constants.fc_scale
        x = F.relu(self.fc7(x)) * self.constants.fc_scale
        logits: Tensor = self.fc8(x)
        return logits

    def _pooled(self, x: Tensor) -> Tensor:
        return F.max_pool2d(x, 3, 2, ceil_mode=True)

    def _across_maps(self, x: Tensor) -> Tensor:
        """Over neighbouring maps of one tower: as twice as many images of half as many maps (§2.1)."""
        how, (maps, *sides) = self.constants, x.shape[1:]
        towers = x.reshape(-1, maps // 2, *sides)
        # torch divides alpha by n.
        towers = F.local_response_norm(towers, how.lrn_n, how.lrn_n * how.lrn_a, how.beta, how.lrn_k)
        return towers.reshape(-1, maps, *sides)

    def _same_map(self, x: Tensor, a: float) -> Tensor:
        """Over the n × n pixels of the same map: the mean that counts the zeros beyond the edge, times n²."""
        n = self.constants.same_map_n
        sums = n * n * F.avg_pool2d(x * x, n, stride=1, padding=n // 2)
        scale: Tensor = (self.constants.same_map_k + a * sums).pow(-self.constants.beta)
        return x * scale


@dataclass(frozen=True, slots=True)
class Form:
    """One way to take a network away: what the file is called, how it is written, and read again to be asked."""

    file: str
    needs: tuple[str, ...]  # packages beside torch
    write: Callable[[Portable, Path, Mapping[str, str]], None]  # the words about it go where the form has room
    load: Callable[[Path], Logits]


def _write_safetensors(network: Portable, path: Path, about: Mapping[str, str]) -> None:
    from safetensors.torch import save_file

    tensors = {name: tensor.contiguous() for name, tensor in network.state_dict().items()}
    save_file(tensors, path, metadata={"format": "pt", **about, **network.constants.to_words()})


def _load_safetensors(path: Path) -> Logits:
    from safetensors import safe_open
    from safetensors.torch import load_file

    weights = load_file(path)
    with safe_open(path, "pt") as file:
        constants = Constants.from_words(file.metadata())
    mean = weights.pop("mean")
    return _asked(Portable(constants, weights, mean))


def _write_torch_export(network: Portable, path: Path, _about: Mapping[str, str]) -> None:
    with _quiet():
        program = torch.export.export(network, (_example(network),), dynamic_shapes=_any_batch())
        for node in program.graph.nodes:
            node.meta.pop("stack_trace", None)  # which names folders of this machine
        torch.export.save(program, path)


def _load_torch_export(path: Path) -> Logits:
    with _quiet():
        return _asked(torch.export.load(path).module())


def _write_onnx(network: Portable, path: Path, about: Mapping[str, str]) -> None:
    with _quiet():
        program = torch.onnx.export(
            network,
            (_example(network),),
            dynamo=True,
            opset_version=OPSET,
            input_names=["images"],
            output_names=["logits"],
            dynamic_shapes=_any_batch(),
            verbose=False,
        )
        assert program is not None  # it is with dynamo=False
        for node in program.model.graph:
            node.metadata_props.clear()  # which name folders of this machine
        program.model.metadata_props.update({**about, **network.constants.to_words()})
        size = sum(tensor.nbytes for tensor in network.state_dict().values())
        program.save(path, external_data=size > LARGEST_ONNX_BYTES)


def _load_onnx(path: Path) -> Logits:
    import onnx
    import onnxruntime

    onnx.checker.check_model(path)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])

    def logits(images: Tensor) -> Tensor:
        return torch.from_numpy(session.run(["logits"], {"images": images.numpy()})[0])

    return logits


FORMS: Mapping[str, Form] = {
    "safetensors": Form("network.safetensors", ("safetensors",), _write_safetensors, _load_safetensors),
    "torch-export": Form("network.pt2", (), _write_torch_export, _load_torch_export),
    "onnx": Form("network.onnx", ("onnx", "onnxscript", "onnxruntime"), _write_onnx, _load_onnx),
}


def _example(network: Portable) -> Tensor:
    """Two images: of one, an exporter may conclude that it is always one."""
    return torch.zeros(2, 3, network.side, network.side)


def _any_batch() -> tuple[dict[int, Any]]:
    return ({0: torch.export.Dim("batch")},)


def _asked(network: Callable[[Tensor], Tensor]) -> Logits:
    @torch.no_grad()
    def logits(images: Tensor) -> Tensor:
        return network(images)

    return logits


@contextmanager
def _quiet() -> Iterator[None]:
    """Without what torch's exporters say of their own code, and of torchvision, which nobody asked for."""
    logger = logging.getLogger("torch.onnx")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(before)
