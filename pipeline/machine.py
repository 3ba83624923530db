"""What this process may take of the machine, for what the caller leaves open: threads and batches ahead."""

from __future__ import annotations

import os
from pathlib import Path

import torch

from ..shards import usable_cores

_MOST_OF_MEMORY = 8  # at most this part of the free memory is filled with batches ahead
_LEAST, _MOST = 1, 4  # batches ahead, beside those that are being made: four for pauses

_GROUPS = Path("/sys/fs/cgroup")
_MEMORY = Path("/proc/meminfo")


def granted_cores() -> int:
    """Cores that this process and the ranks beside it may keep busy: those they may run on, within the quota."""
    quota = cpu_quota()
    return usable_cores() if quota is None else min(usable_cores(), max(1, round(quota)))


def default_threads() -> int:
    """One a core that this process may use; where torchrun runs several ranks here, their share of the cores."""
    cores = granted_cores()
    ranks = os.environ.get("LOCAL_WORLD_SIZE", "")
    return max(1, cores // int(ranks)) if ranks.isdecimal() and int(ranks) > 0 else cores


def default_prefetch(batch_bytes: int, free_bytes: int | None, *, in_flight: int) -> int:
    """Batches made ahead: four where all batches take little of the free memory (None: unknown), at least one.

    Args:
        in_flight: batches being made meanwhile; besides, one waits for room and one is the consumer's.

    >>> free = (200_000_000_000, 4_500_000_000, 100_000_000, None)
    >>> [default_prefetch(77_000_000, each, in_flight=2) for each in free]
    [4, 3, 1, 1]
    """
    fitting = 0 if free_bytes is None else free_bytes // _MOST_OF_MEMORY // max(1, batch_bytes) - in_flight - 2
    return max(_LEAST, min(_MOST, fitting))


def cpu_quota(groups: Path = _GROUPS) -> float | None:
    """Cores that the control group's quota is worth; None: no limit, or none that can be read."""
    for of, per in (("cpu.max", None), ("cpu/cpu.cfs_quota_us", "cpu/cpu.cfs_period_us")):
        words = _words(groups / of) + (_words(groups / per) if per else [])
        if len(words) == 2 and all(word.isdecimal() and int(word) > 0 for word in words):
            return int(words[0]) / int(words[1])
    return None


def free_on(device: torch.device) -> int | None:
    """Bytes that batches on a device may be given; None: unknown."""
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else free_memory()


def free_memory(groups: Path = _GROUPS, memory: Path = _MEMORY) -> int | None:
    """Bytes that can be had without swapping: the machine's, or what the control group has left; None: unknown."""
    found = []
    words = _words(memory)
    if "MemAvailable:" in words:
        found.append(int(words[words.index("MemAvailable:") + 1]) * 1024)
    for limit, used in (
        ("memory.max", "memory.current"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"),
    ):
        both = _words(groups / limit) + _words(groups / used)
        if len(both) == 2 and all(word.isdecimal() for word in both):
            found.append(max(0, int(both[0]) - int(both[1])))
    return min(found, default=None)


def _words(path: Path) -> list[str]:
    try:
        return path.read_text().split()
    except OSError:
        return []
