"""The five most probable classes of images, by the network that lies beside this file.

    python example.py IMAGE…

network.safetensors   pip install torch safetensors numpy pillow
network.pt2           pip install torch numpy pillow
network.onnx          pip install onnxruntime numpy pillow

The program that trained the network is not needed.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

HERE = Path(__file__).resolve().parent


def main(paths: list[str]) -> None:
    """Print what the network makes of each image."""
    how = json.loads((HERE / "preprocessing.json").read_text(encoding="utf-8"))
    classes = json.loads((HERE / "classes.json").read_text(encoding="utf-8"))
    network = load_network()
    for path in paths:
        try:
            image = central_crop(path, how["stored_side"], how["side"])
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:  # Pillow's, by format
            sys.exit(f"error: {path} cannot be read as an image: {error}")
        logits = network(image[None])[0].astype(np.float64)
        probabilities = np.exp(logits - logits.max())
        probabilities /= probabilities.sum()
        print(path)
        for label in np.argsort(-probabilities, kind="stable")[:5]:
            print(f"  {100 * probabilities[label]:5.1f} %  {classes[label]['synset']}  {classes[label]['words']}")


def central_crop(path: str | Path, stored_side: int, side: int) -> NDArray[np.float32]:
    """An image file as the network wants it: (3, side, side), RGB, 0..255, nothing subtracted.

    The shorter side becomes `stored_side`, bicubic; of the square in its middle the middle is taken. EXIF's
    orientation is ignored and alpha dropped, as in the images that the network was trained on.
    """
    with Image.open(path) as image:
        if image.mode.startswith("I"):  # 16 bits: the upper eight
            upper = np.clip(np.asarray(image) >> 8, 0, 255).astype(np.uint8)
            pixels = Image.fromarray(upper).convert("RGB")
        else:
            pixels = image.convert("RGB")
    left, right = middle(pixels.width, min(pixels.size), stored_side)
    top, bottom = middle(pixels.height, min(pixels.size), stored_side)
    box, size = (left, top, right, bottom), (stored_side, stored_side)
    square = np.asarray(pixels.resize(size, Image.Resampling.BICUBIC, box=box), np.float32)
    border = (stored_side - side) // 2
    crop = square[border : border + side, border : border + side]
    return np.ascontiguousarray(crop.transpose(2, 0, 1))


def middle(length: int, shorter: int, stored_side: int) -> tuple[float, float]:
    """Where the central square begins and ends along a side of `length` pixels."""
    resized = (2 * length * stored_side + shorter) // (2 * shorter)  # length·stored_side/shorter, rounded
    start = (resized - stored_side) // 2
    return start * length / resized, min((start + stored_side) * length / resized, length)


def load_network() -> Callable[[NDArray[np.float32]], NDArray[np.float32]]:
    """From images, (N, 3, side, side), to logits, (N, classes)."""
    if (HERE / "network.onnx").exists():
        import onnxruntime

        session = onnxruntime.InferenceSession(HERE / "network.onnx", providers=["CPUExecutionProvider"])
        return lambda images: session.run(["logits"], {"images": images})[0]
    import torch

    if (HERE / "network.pt2").exists():
        network: Callable[[Any], Any] = torch.export.load(HERE / "network.pt2").module()
    else:
        network = alexnet(HERE / "network.safetensors")

    def logits(images: NDArray[np.float32]) -> NDArray[np.float32]:
        with torch.no_grad():
            return network(torch.from_numpy(images)).numpy()  # type: ignore[no-any-return]

    return logits


def alexnet(path: str | Path) -> Callable[[Any], Any]:
    """The network of a safetensors file as a function of torch's tensors, from images to logits.

    Maps are those of two towers, one after the other, as on the two GPUs of 2012: conv2, conv4 and conv5 see their
    own tower, and so does the response normalisation. The file's metadata say what differs from recipe to recipe.
    """
    import torch.nn.functional as F
    from safetensors import safe_open

    with safe_open(path, "pt") as file:
        words = file.metadata()
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (it is no dict)

    def layer(name: str) -> tuple[Any, Any]:
        return tensors[f"{name}.weight"], tensors[f"{name}.bias"]

    def conv(name: str, x: Any, *, stride: int = 1, padding: int = 1, groups: int = 1) -> Any:
        weight, bias = layer(name)
        return F.conv2d(x, weight, bias, stride, padding, groups=groups)

    def pool(x: Any) -> Any:
        return F.max_pool2d(x, 3, 2, ceil_mode=True)

    def across_maps(x: Any) -> Any:
        """x / (k + a · sum of the squares of n neighbouring maps of the same tower)^beta."""
        n, k, a = int(words["lrn_n"]), float(words["lrn_k"]), float(words["lrn_a"])
        towers = x.reshape(2 * len(x), -1, *x.shape[2:])
        return F.local_response_norm(towers, n, n * a, float(words["beta"]), k).reshape(x.shape)

    def same_map(x: Any) -> Any:
        """The same with the n × n pixels around, in one map."""
        n, k, a = int(words["same_map_n"]), float(words["same_map_k"]), float(words["same_map_a"])
        squares = n * n * F.avg_pool2d(x * x, n, stride=1, padding=n // 2)
        return x / (k + a * squares) ** float(words["beta"])

    def logits(images: Any) -> Any:
        x = images - tensors["mean"]
        if words["conv1_pad"] == "symmetric":
            x = conv("conv1", x, stride=4, padding=2)
        else:  # the last window hangs over the right and lower edge
            over = -(x.shape[-1] - 11) % 4
            x = conv("conv1", F.pad(x, (0, over, 0, over)), stride=4, padding=0)
        if words["layer1_order"] == "relu-lrn-pool":
            x = pool(across_maps(F.relu(x)))
        else:
            x = F.relu(pool(across_maps(x)))
        x = across_maps(F.relu(conv("conv2", x, padding=2, groups=2)))
        if "same_map_a" in words:
            x = same_map(x)
        x = F.relu(conv("conv3", pool(x)))
        x = F.relu(conv("conv4", x, groups=2))
        x = pool(F.relu(conv("conv5", x, groups=2)))
        if "conv6.weight" in tensors:
            x = F.relu(conv("conv6", x))
        x = x.flatten(1)
        for name in ("fc6", "fc7"):
            x = float(words["fc_scale"]) * F.relu(F.linear(x, *layer(name)))
        return F.linear(x, *layer("fc8"))

    return logits


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit("usage: python example.py IMAGE…")
    main(sys.argv[1:])
