"""What the figures of `tools/bench_loader` depend on."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version

import numpy
import PIL
import torch

from .. import __version__


def versions() -> dict[str, str]:
    """By name, of this package and of those that do the work."""

    def of(*names: str) -> str:
        for name in names:
            try:
                return version(name)
            except PackageNotFoundError:
                continue
        return "not installed"

    return {
        "alexshard": __version__,
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "dali": of("nvidia-dali-cuda130", "nvidia-dali-cuda120"),
        "simplejpeg": of("simplejpeg"),
        # pillow-simd lies over Pillow; the module knows which it is.
        "pillow-simd" if ".post" in PIL.__version__ else "pillow": PIL.__version__,
        "numpy": numpy.__version__,
    }
