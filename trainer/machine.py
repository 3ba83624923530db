"""On what a run computes: devices, threads, versions. Decides a run's speed, and the last bits of its result."""

from __future__ import annotations

import os
import platform
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from .. import __version__
from ..shards import WrongCall


@dataclass(frozen=True, slots=True)
class Machine:
    """One device for the whole network, or two for its towers, and how batches get there.

    `threads` are torch's and the loader's; None leaves them, as it leaves the rest, to torch and to `Loader`.
    """

    devices: tuple[torch.device, ...]
    threads: int | None = None
    prefetch: int | None = None
    backend: str | None = None
    decoder: str | None = None

    @classmethod
    def choose(
        cls,
        device: str | None = None,
        *,
        devices: Sequence[str] | None = None,
        threads: int | None = None,
        prefetch: int | None = None,
        backend: str | None = None,
        decoder: str | None = None,
    ) -> Machine:
        """The device named: `auto` (the default: a GPU where there is one), `cpu`, `cuda`, `cuda:N`; or two.

        The rest is what `Loader` describes under these names.

        Raises:
            WrongCall: a device is not there, both ways are used, or `devices` are not two.
        """
        if device is not None and devices is not None:
            raise WrongCall(
                f"--device {device} and --devices {','.join(devices)} at once",
                why="the network is on one device or on two",
                remedy="leave one of them out",
            )
        if devices is not None and len(devices) != 2:
            raise WrongCall(
                f"--devices names {len(devices)} devices",
                why="the network has two towers, one for each device",
                remedy="name two, such as cuda:0,cuda:1 or cpu,cpu; for a single device use --device",
            )
        if threads is not None and threads < 1:
            raise WrongCall(f"{threads} threads", remedy="give at least 1, or leave --threads out")
        chosen = tuple(_device(name) for name in devices or (device or "auto",))
        if decoder in ("card", "split") and chosen[0].type == "cpu":
            raise WrongCall(
                f"--decoder {decoder} decodes on a card, and batches go to the cpu",
                remedy="--decoder cores, or leave it out",
            )
        return cls(chosen, threads, prefetch, backend, decoder)

    @property
    def device(self) -> torch.device:
        """Where batches go and logits come out."""
        return self.devices[0]

    @property
    def loading(self) -> dict[str, Any]:
        """What was asked for of the loader, as its arguments; the loader chooses the rest."""
        asked = {
            "threads": self.threads,
            "prefetch": self.prefetch,
            "backend": self.backend,
            "decoder": self.decoder,
        }
        return {name: value for name, value in asked.items() if value is not None}

    def prepare(self) -> None:
        """Set this process up: number of threads, and fp32 arithmetic in fp32 (cuDNN would take TF32)."""
        if self.threads is not None:
            torch.set_num_threads(self.threads)
        torch.backends.cudnn.allow_tf32 = False

    def synchronize(self) -> None:
        """Wait until all work given to the devices is done."""
        for device in self.devices:
            if device.type == "cuda":
                torch.cuda.synchronize(device)

    def describe(self) -> dict[str, Any]:
        """What a reader of a figure wants to know."""
        return {
            "devices": [str(device) for device in self.devices],
            "names": [_name(device) for device in self.devices],
            "cores": os.cpu_count(),
            "threads": self.threads or torch.get_num_threads(),
            "system": f"{platform.system()} {platform.machine()}",
        }


def versions() -> dict[str, str]:
    """Versions of what computes."""
    return {"alexshard": __version__, "torch": str(torch.__version__), "python": platform.python_version()}


def _device(name: str) -> torch.device:
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise WrongCall(f"{name!r} is no device", remedy="use auto, cpu, cuda or cuda:N") from None
    if device.type not in ("cpu", "cuda"):
        raise WrongCall(f"no support for the device {name!r}", remedy="use auto, cpu, cuda or cuda:N")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise WrongCall(
            f"the device {name} is not there",
            where=f"torch {torch.__version__} sees {torch.cuda.device_count()} CUDA devices",
            remedy="--device cpu, or install a torch built for your driver (alexshard doctor says more)",
        )
    # A bare "cuda" would compare unequal to the "cuda:0" of tensors that live there.
    return torch.device("cuda", device.index or 0) if device.type == "cuda" else device


def _name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    try:
        with Path("/proc/cpuinfo").open(encoding="utf-8") as file:
            return next(line.split(":", 1)[1].strip() for line in file if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
