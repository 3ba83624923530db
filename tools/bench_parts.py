"""For `tools/bench_build`: where the time of a packed image goes, and what reduced decoding costs in quality."""

from __future__ import annotations

import hashlib
import math
import statistics
import time
from collections.abc import Sequence

import numpy as np
import simplejpeg

from ..shards import ImageFormat
from .packing.decode import Decoded, decode
from .packing.image import central_square, encoded
from .packing.statistics import SquareSums

SIDE = 256
FORMAT = ImageFormat(SIDE, "jpeg", 90, "4:2:0")
MOST = 400  # images of which parts are measured


def parts_ms(originals: Sequence[bytes], repeats: int) -> dict[str, float]:
    """Median CPU time of each part of packing an image, in ms, one after the other in one process."""
    images = originals[:MOST]
    taken: dict[str, list[float]] = {}
    for _ in range(repeats):
        found = dict.fromkeys(("decoding alone", "decode", "square", "sums", "encode", "SHA-256"), 0.0)
        sums = SquareSums(SIDE)
        for data in images:
            clock = [time.process_time()]
            simplejpeg.decode_jpeg(data, "RGB", strict=False)
            clock.append(time.process_time())
            image = decode(data, side=SIDE)
            clock.append(time.process_time())
            square = _square(image)
            clock.append(time.process_time())
            sums.add(square)
            clock.append(time.process_time())
            jpeg = encoded(square, FORMAT)
            clock.append(time.process_time())
            hashlib.sha256(jpeg)
            clock.append(time.process_time())
            for name, before, after in zip(found, clock, clock[1:], strict=False):
                found[name] += after - before
        for name, seconds in found.items():
            taken.setdefault(name, []).append(seconds / len(images) * 1e3)
    return {name: statistics.median(runs) for name, runs in taken.items()}


def psnr_of_reduced(originals: Sequence[bytes]) -> dict[str, float | int]:
    """PSNR of the stored pixels where JPEGs are decoded at a fraction, against those of `--exact`."""
    found = []
    for data in originals:
        fast = decode(data, side=SIDE)
        if fast.reduction > 1:
            difference = _square(fast)[..., :3].astype(np.float64) - _square(decode(data))[..., :3]
            found.append(10 * math.log10(255**2 / max(float((difference**2).mean()), 1e-9)))
    quality: dict[str, float | int] = {"images": len(found), "of": len(originals)}
    return quality | {"median_db": statistics.median(found), "worst_db": min(found)} if found else quality


def _square(image: Decoded) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    return central_square(image.pixels_HWC, SIDE, size=(image.width, image.height), reduction=image.reduction)
