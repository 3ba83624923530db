"""G5 of `tools/gpu_check`: batches pass from the loader to torch without a copy, and stay what they were.

Three passes over the same batches. The first reads each one and waits. The second keeps batches while other work
runs on a stream beside, and reads them when they come and again when others have come after them. The third reads
each on a second stream that is behind, and lets go of it at once. All must find the same pixels.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import closing, nullcontext
from functools import partial
from itertools import islice
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from ..pipeline import Loader
from .gpu_forms import Form, forms, opened
from .gpu_report import Row
from .gpu_scene import Part, Scene, synchronize

HELD = 12  # batches that somebody keeps


def parts(scene: Scene) -> Iterator[Part]:
    """Of every form: what is copied, then who overwrites."""
    for form in forms(scene, raw=False):
        yield Part(f"{form.name}: copies", partial(_copies, form=form))
    for form in forms(scene, raw=False):
        yield Part(f"{form.name}: batches kept", partial(_kept, form=form))


class Watched(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Names the operations of torch in this thread that write as many bytes as `least`, or more."""

    def __init__(self, least: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.least, self.names = least, list[str]()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        # A view has the memory of what it is made of, and so has what was copied into.
        given = set() if "copy_" in str(func) else {_memory(each) for each in _tensors(args)}
        if any(each.nbytes >= self.least and _memory(each) not in given for each in _tensors([made])):
            self.names.append(str(func))
        return made


def _memory(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def _tensors(values: Any) -> list[torch.Tensor]:
    found = []
    for value in values:
        if isinstance(value, torch.Tensor):
            found.append(value)
        elif isinstance(value, list | tuple):
            found += _tensors(value)
    return found


def _copies(scene: Scene, *, form: Form) -> Iterable[Row]:
    """The hand-over of float32 as the maker lays it out: nothing to convert, so nothing to copy."""
    loader = opened(scene, form, scene.sets.images, batch_size=scene.sizes.kept[1])
    what = f"{form.name}: operations of torch that wrote a batch's images at the hand-over"
    if isinstance(loader, str):
        yield Row(what, loader, verdict="left out")
        return
    with loader, closing(iter(loader)) as batches:  # type: ignore[type-var]
        size = next(batches).images.nbytes
        synchronize(scene.device)
        before = torch.cuda.memory_allocated(scene.device) if scene.on_card else 0
        with Watched(size // 2) as watched:
            batch = next(batches)
        taken = torch.cuda.memory_allocated(scene.device) - before if scene.on_card else 0
        del batch
        promised = loader.decoder != "split" and not (scene.on_card and loader.backend == "threads")
    names = sorted(set(watched.names))
    figure = ", ".join(names) or "none"
    figure += f"; torch's memory on the card grew by {taken:,} bytes of {size:,}" if scene.on_card else ""
    if not promised:
        yield Row(what, f"{figure} (two parts are joined, or come from the cores)", n="1 batch")
        return
    holds = not names and taken < size // 2
    yield Row.held(what, figure, holds, n="1 batch", operations=names, batch_bytes=size, torch_bytes=taken)


def _kept(scene: Scene, *, form: Form) -> Iterable[Row]:
    number, batch_size = scene.sizes.kept
    shard_set = scene.sets.many
    loader = opened(scene, form, shard_set, batch_size=batch_size)
    what = f"{form.name}: batches that were not the same pixels"
    if isinstance(loader, str):
        yield Row(what, loader, verdict="left out")
        return
    with loader:
        work = _Beside(scene)
        first = _read_at_once(scene, _again(loader, number))
        came, later = _read_twice(_again(loader, number), work)
        behind = _read_behind(scene, _again(loader, number), work)
    counts = {
        "as they came, work on another stream": _differ(came, first),
        f"{HELD} batches later": _differ(later, first),
        "read on a second stream and let go at once": _differ(behind, first),
    }
    figure = ", ".join(f"{count} {when}" for when, count in counts.items())
    alike = len({tuple(digest) for digest in first}) > 1  # digests that cannot differ would prove nothing
    whole = len(first) == len(came) == len(later) == len(behind) > 0
    yield Row.held(
        what,
        figure,
        whole and alike and not any(counts.values()),
        n=f"{len(first):,} batches of {batch_size}, three passes",
        batches=len(first),
        different=list(counts.values()),
    )


def _again(loader: Loader, number: int) -> Iterator[torch.Tensor]:
    """The images of the same batches each time: as many epochs as it takes, from the first on."""
    loader.load_state_dict({**loader.state_dict(), "epoch": 0, "position": 0})

    def endless() -> Iterator[torch.Tensor]:
        while True:
            for batch in loader:
                images = [batch.images]
                del batch
                yield images.pop()  # whoever takes them is the only one to have them

    return islice(endless(), number)


def _digest(images: torch.Tensor) -> torch.Tensor:
    """Two sums over the bits, one with a weight for each place: int64 (2,), on the device, not waited for."""
    bits = images.contiguous().view(torch.int32).flatten().long()
    weights = torch.arange(1, len(bits) + 1, device=bits.device)
    return torch.stack([bits.sum(), (bits * (weights % 65521)).sum()])


def _read_at_once(scene: Scene, batches: Iterator[torch.Tensor]) -> list[list[int]]:
    found = []
    for images in batches:
        found.append(_digest(images).tolist())
        synchronize(scene.device)
    return found


def _read_twice(batches: Iterator[torch.Tensor], work: _Beside) -> tuple[list[list[int]], list[list[int]]]:
    came, later = [], []
    held: deque[torch.Tensor] = deque()
    for images in batches:
        work.go_on()
        came.append(_digest(images))
        held.append(images)
        if len(held) > HELD:
            later.append(_digest(held.popleft()))
    later += [_digest(images) for images in held]
    return [each.tolist() for each in came], [each.tolist() for each in later]


def _read_behind(scene: Scene, batches: Iterator[torch.Tensor], work: _Beside) -> list[list[int]]:
    found = []
    for images in batches:
        with work.on_second_stream():
            found.append(_digest(images))
        work.wait_for_second_stream()  # as docs/gpu.md asks of a consumer, before the batch is let go
        del images
    synchronize(scene.device)
    return [each.tolist() for each in found]


def _differ(found: list[list[int]], expected: list[list[int]]) -> int:
    return sum(one != other for one, other in zip(found, expected, strict=True))


class _Beside:
    """Other work on the device: on a card on streams of its own, on the cores in between."""

    def __init__(self, scene: Scene) -> None:
        self._device = scene.device
        side = min(4096, scene.sizes.products)
        self._a = torch.randn(side, side, device=scene.device)
        self._streams: list[torch.cuda.Stream] = []
        for _ in (0, 1) if scene.on_card else ():
            self._streams.append(torch.cuda.Stream(scene.device))  # type: ignore[no-untyped-call]

    def go_on(self) -> None:
        """A product more, that nobody waits for."""
        with torch.cuda.stream(self._streams[0]) if self._streams else nullcontext():
            torch.tanh(self._a @ self._a)

    def on_second_stream(self) -> Any:
        """A stream that has the images, and a product to do before it reads them."""
        if not self._streams:
            return nullcontext()
        stream = self._streams[1]
        stream.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(stream):
            torch.tanh(self._a @ self._a)
        return torch.cuda.stream(stream)

    def wait_for_second_stream(self) -> None:
        if self._streams:
            torch.cuda.current_stream(self._device).wait_stream(self._streams[1])
