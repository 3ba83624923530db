"""DALI's memory in torch's hands: not given back before it has been read.

On a card a kernel runs after the call that enqueued it. So when the last tensor over a batch goes, kernels that
read it may still be waiting, and DALI, on a stream of its own, could write the next batch into that memory.
"""

from __future__ import annotations

import atexit
import sys
import weakref
from collections import deque
from collections.abc import Callable

import torch

_unread: deque[tuple[torch.cuda.Event, object]] = deque()  # DALI's tensors, and what to wait for
atexit.register(_unread.clear)


def keep_until_read(images: torch.Tensor, output: object) -> None:
    """Hold DALI's `output`, whose memory `images` on a card has, until what was enqueued to read it has run.

    That is what is on the current stream of whoever lets go of the last tensor; another stream that reads must be
    waited for first, as with any tensor of torch's own.
    """
    when_forgotten(images, _hold, output, images.device)


def _hold(output: object, device: torch.device) -> None:
    if sys.is_finalizing():
        return
    _unread.append((torch.cuda.current_stream(device).record_event(), output))
    while _unread and _unread[0][0].query():  # type: ignore[no-untyped-call]
        _unread.popleft()


def when_forgotten(images: torch.Tensor, then: Callable[..., object], *arguments: object) -> None:
    """Call `then` when no tensor over the memory of `images` lives any more, not even one that autograd saved."""
    # torch keeps a storage's Python object as long as the storage itself; a tensor's would go before its views.
    weakref.finalize(images.untyped_storage(), then, *arguments).atexit = False
