"""Dropout masks as a pure function: seed, step, layer, position in the global batch and unit decide each bit.

So no generator has a state to save, towers take slices of units, ranks take slices of positions, and any device
draws the same mask (architecture.md D1). Bits come from splitmix64 (Steele, Lea, Flood 2014) of a counter, 32 at a
time. Keep probability 1/2, kept units unscaled; outputs are halved at test (2012 paper, §4.2; fidelity.md §6).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

_GOLDEN, _MIX_1, _MIX_2 = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB
_BITS = 32  # of a hash that are used: its upper half


@dataclass(frozen=True, slots=True)
class Masks:
    """The masks of one step. `first` is the position in the global batch of the first row asked for.

    `step` may be a tensor on the device, int64 (): then one recording of the work (a CUDA graph, compiled code)
    serves every step.
    """

    seed: int
    step: int | Tensor
    first: int = 0

    def draw(self, layer: int, rows: int, units: int, device: torch.device) -> Tensor:
        """True where a unit is kept; bool, (rows, units), `units` counting both towers."""
        words = -(-units // _BITS)
        counters = torch.arange(self.first * words, (self.first + rows) * words, device=device)
        hashes = _splitmix(counters * _signed(_GOLDEN) + self._key(layer))
        bits = hashes[:, None] >> torch.arange(64 - _BITS, 64, device=device) & 1
        return bits.bool().view(rows, words * _BITS)[:, :units]

    def _key(self, layer: int) -> int | Tensor:
        seed = _splitmix_int(self.seed + _GOLDEN)
        if isinstance(self.step, Tensor):
            step = _splitmix(self.step + _signed((seed + _GOLDEN) % 2**64))
            return _splitmix(step + _signed(layer + _GOLDEN))
        return _signed(_splitmix_int(_splitmix_int(seed + self.step + _GOLDEN) + layer + _GOLDEN))


def _splitmix(x: Tensor) -> Tensor:
    # int64 products wrap around as uint64 ones do; right shifts have to drop the copies of the sign.
    x = (x ^ (x >> 30 & (1 << 34) - 1)) * _signed(_MIX_1)
    x = (x ^ (x >> 27 & (1 << 37) - 1)) * _signed(_MIX_2)
    return x ^ (x >> 31 & (1 << 33) - 1)


def _splitmix_int(x: int) -> int:
    x &= 2**64 - 1
    x = (x ^ (x >> 30)) * _MIX_1 % 2**64
    x = (x ^ (x >> 27)) * _MIX_2 % 2**64
    return x ^ (x >> 31)


def _signed(word: int) -> int:
    """The int64 with the bits of this uint64."""
    return word - 2**64 if word >= 2**63 else word
