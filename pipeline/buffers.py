"""Memory that is used again, and never while somebody still looks at it."""

from __future__ import annotations

import math
import weakref
from collections import deque
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from . import kernels


class BufferRing:
    """Arrays over memory that is used again once nothing refers to it any more.

    What `take` returns may be kept, sliced or handed to torch: its memory comes back only when the last view of it
    is gone, so nothing that somebody holds is ever overwritten. There are as many buffers as were held at once.
    """

    def __init__(self) -> None:
        self._free: deque[memoryview] = deque()  # appended to by finalizers, at any moment, in any thread

    def take(self, shape: tuple[int, ...], dtype: DTypeLike = np.uint8) -> NDArray[Any]:
        """An array with undefined content."""
        size = math.prod(shape) * np.dtype(dtype).itemsize
        memory = None
        while memory is None and self._free:
            candidate = self._free.pop()  # the one used last: it may still lie in a cache
            memory = candidate if len(candidate) >= size else None
        if memory is None:
            memory = kernels.batch_memory(size).data
        # NumPy lets a view refer to the array that owns the memory and forgets those between; over a memoryview
        # this array is the last in the chain, so it lives as long as any view of it.
        array = np.frombuffer(memory, np.uint8, count=size)
        weakref.finalize(array, self._free.append, memory).atexit = False
        return array.view(dtype).reshape(shape)
