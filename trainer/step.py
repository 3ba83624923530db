"""One step of training, the same wherever it is taken: in a run, in a measurement, in a test.

    images, labels ─► network ─► loss ─► gradients (averaged over ranks) ─► momentum, weights
                                  └────► metrics.sums, on the device

A step may be taken three ways, with the same arithmetic: as torch comes to each operation; with the network
compiled by torch.compile; or, on one card, recorded once as a CUDA graph and replayed, so that the host launches
one thing a step (at batch 128 a step is of the order of what its hundred launches cost).
"""

from __future__ import annotations

import gc
import warnings
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from .dropout import Masks
from .machine import give_memory_back
from .metrics import sums
from .ranks import Ranks
from .recipe import Recipe
from .schedule import Schedule
from .schedules import Segment
from .sgd import PaperSGD
from .towers import Network, TwoTowers

Images = Tensor | tuple[Tensor, Tensor]  # for two towers: the same on either device
EAGER_STEPS = 3  # before a graph is recorded: libraries choose kernels, momentum comes into being


class Stepper:
    """A network with its optimiser, moved one batch at a time along a schedule.

    Args:
        ranks: of which each takes its slice of every global batch; gradients are averaged over them.
        compiled: compile the network with torch.compile; where that fails a warning says why, and torch's own
            operations go on.
        graphs: record the step as a CUDA graph, on one card alone.
    """

    def __init__(
        self,
        network: Network,
        recipe: Recipe,
        schedule: Schedule,
        *,
        ranks: Ranks | None = None,
        compiled: bool = False,
        graphs: bool = False,
    ) -> None:
        self.network, self.recipe, self.schedule = network, recipe, schedule
        self.ranks = ranks or Ranks()
        self.sgd = PaperSGD(network.pieces(), recipe)
        self.compiled = compiled
        self.graphs = graphs and _on_one_card(network) and self.ranks.count == 1
        self._segment: Segment | None = None
        # The network as it is called, in training and evaluation; and within what averages gradients over ranks.
        self._module: nn.Module = network
        self._forward: Callable[..., Tensor] = network
        self._recording: _Recording | None = None
        self._eager_left = EAGER_STEPS
        # In a tensor where one piece of compiled or recorded work serves every step.
        self._step: Tensor | None = None
        if compiled or self.graphs:
            self._step = torch.zeros((), dtype=torch.int64, device=device_of(network))

    def step(self, step: int, images: Images, labels: Tensor) -> Tensor:
        """Update number `step` on this rank's slice of a global batch.

        Returns `metrics.sums` of that slice by the network before the update, on its device. No value is read
        back: on a card the work is queued, and may not have begun when this returns.
        """
        self._take(self.schedule.at(step))
        if self._step is not None:
            self._step.fill_(step)
        if self._recording is None and self.graphs and isinstance(images, Tensor):
            self._record_if_ready(images, labels)
        if self._recording is not None and isinstance(images, Tensor) and self._recording.fits(images):
            return self._recording.replay(images, labels)
        return self._computed(step, images, labels)

    @property
    def module(self) -> nn.Module:
        """The network for evaluation: compiled where the steps are."""
        return self._module

    def update_ratios(self) -> Tensor:
        """`PaperSGD.update_ratios` of the last step."""
        assert self._segment is not None
        return self.sgd.update_ratios(self._segment)

    def largest_fit(self, count: int, side: int) -> int | None:
        """The most images, of a few numbers below `count`, that find memory after a step of `count` did not.

        None: not even one does. The network is not used again.
        """
        fits, tried = None, count // 2
        while tried and fits is None:
            fits = tried if self.fits(tried, side) else None
            tried //= 2
        if fits is not None and self.fits(more := fits + fits // 2, side):
            return more
        return fits

    def fits(self, count: int, side: int) -> bool:
        """Whether forward and backward of `count` images of `side` find memory; after one step that did not.

        Leaves the weights alone. What was recorded or compiled for other batches is given up.
        """
        self._recording, self._segment = None, None
        self.sgd.forget_gradients()
        device = device_of(self.network)
        give_memory_back()
        masks = Masks(self.recipe.seed, 0, first=0) if self.recipe.dropout else None
        try:
            velocity = self.sgd.missing_momentum()  # a first step makes it
            images = torch.zeros(count, 3, side, side, device=device)
            logits = self.network(images, masks)
            loss = F.cross_entropy(logits, torch.zeros(count, dtype=torch.int64, device=device))
            loss.backward()  # type: ignore[no-untyped-call]
            del velocity
        except Exception as error:
            if not out_of_memory(error):
                raise
            return False
        finally:
            self.sgd.forget_gradients()
        return True

    def _take(self, segment: Segment) -> None:
        if segment is self._segment:
            return
        self.sgd.use(segment)
        self._segment, self._recording, self._eager_left = segment, None, EAGER_STEPS
        self._module = self._forward = self.network  # what there was before lets go of the parameters now
        if self.compiled:
            try:
                compiled: Any = torch.compile(self.network, dynamic=False)
            except RuntimeError as error:  # for this Python, say, there is no compiler
                self._compile_no_more(_first_line(error))
            else:
                self._module = self._forward = compiled
        if self.ranks.count > 1:
            # Anew for every segment: which parameters have gradients is fixed when this is made.
            self._forward = DistributedDataParallel(self._module, gradient_as_bucket_view=True)

    def _computed(self, step: int, images: Images, labels: Tensor) -> Tensor:
        self.network.train()
        masks = None
        if self.recipe.dropout:
            number = step if self._step is None else self._step
            masks = Masks(self.recipe.seed, number, first=self.ranks.rank * len(labels))
        failed = None
        try:
            logits = self._forward(images, masks)
            F.cross_entropy(logits, labels).backward()  # type: ignore[no-untyped-call]
        except Exception as error:
            # With ranks the others are in the middle of their step: no way back to where all would begin again.
            if not self.compiled or not _of_the_compiler(error) or self.ranks.count > 1:
                raise
            failed = _first_line(error)
        if failed is not None:  # here the error and the frames that it holds are gone
            self._compile_no_more(failed)
            return self._computed(step, images, labels)
        self.sgd.step()
        with torch.no_grad():
            return sums(logits, labels)

    def _compile_no_more(self, reason: str) -> None:
        warnings.warn(f"torch.compile failed, steps go on without: {reason}", stacklevel=2)
        self.compiled = False
        self._module = self._forward = self.network
        self.sgd.forget_gradients()

    def _record_if_ready(self, images: Tensor, labels: Tensor) -> None:
        if self._eager_left > 0:
            self._eager_left -= 1
            return
        try:
            self._recording = _Recording(lambda *batch: self._computed(0, *batch), images, labels)
        except Exception as error:  # whatever cannot be recorded can be computed
            warnings.warn(f"no CUDA graph of the step, steps go on without: {_first_line(error)}", stacklevel=2)
            self.graphs = False
            self.sgd.forget_gradients()


class _Recording:
    """A step as a CUDA graph: what `compute` queues for one batch, to be done again for others of that shape."""

    def __init__(self, compute: Callable[[Tensor, Tensor], Tensor], images: Tensor, labels: Tensor) -> None:
        self._images, self._labels = torch.empty_like(images), torch.empty_like(labels)
        self._graph = torch.cuda.CUDAGraph()
        torch.cuda.synchronize(images.device)
        before = torch.cuda.current_stream(images.device)
        gc.disable()  # a batch that is collected meanwhile would record events of its own
        try:
            # Recording runs nothing: weights stay what they are. Other threads, the loader's, may ask the card for
            # memory meanwhile.
            with (
                torch.cuda.device(images.device),
                torch.cuda.graph(
                    self._graph, stream=_recording_stream(images.device), capture_error_mode="thread_local"
                ),
            ):
                self._sums = compute(self._images, self._labels)
        finally:
            gc.enable()
            torch.cuda.set_stream(before)  # torch does not, where a recording fails at its end

    def fits(self, images: Tensor) -> bool:
        """Whether the batch has the recorded shape, type and layout."""
        mine = self._images
        return (images.shape, images.dtype, images.stride()) == (mine.shape, mine.dtype, mine.stride())

    def replay(self, images: Tensor, labels: Tensor) -> Tensor:
        """The step for this batch; its sums in memory of their own."""
        self._images.copy_(images)
        self._labels.copy_(labels)
        self._graph.replay()
        return self._sums.clone()


@cache
def _recording_stream(device: torch.device) -> torch.cuda.Stream:
    """One a card: each stream has workspaces of its own."""
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]


def device_of(network: Network) -> torch.device:
    """Where logits come out."""
    return network.devices[0] if isinstance(network, TwoTowers) else network.fc8.weight.device


def _on_one_card(network: Network) -> bool:
    return not isinstance(network, TwoTowers) and device_of(network).type == "cuda"


def _of_the_compiler(error: Exception) -> bool:
    """Whether the compiler failed, and not what was compiled."""
    return type(error).__module__.startswith(("torch._dynamo", "torch._inductor"))


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]


def out_of_memory(error: BaseException) -> bool:
    """Whether a device, or the process, had no memory left."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in _NO_MEMORY)


# How torch's allocator for the cores, oneDNN and cuBLAS say it.
_NO_MEMORY = (
    *("can't allocate memory", "not enough memory", "bad_alloc", "CUBLAS_STATUS_ALLOC_FAILED"),
    *("could not create a memory", "could not create a primitive", "can't start new thread"),
)
