"""A run that begins with the weights of another network: fine-tuning, as 1 CNN* of Table 2 (fidelity.md §7.4)."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

from torch import Tensor

from ..shards import WrongCall
from .checkpoint import Checkpoint
from .checkpoint_values import parameter_shapes, shape_of
from .plan import Plan
from .towers import Network

_MAY_BE_NEW = ("conv6", "fc6", "fc7", "fc8")  # other sides, widths of the fc layers, class counts


def weights_digest(network: Mapping[str, Tensor]) -> str:
    """SHA-256 of names, shapes and float32 values, in the order of the names."""
    digest = hashlib.sha256()
    for name in sorted(network):
        whole = network[name].contiguous()
        digest.update(f"{name} {tuple(whole.shape)} ".encode())
        digest.update(memoryview(whole.numpy()).cast("B"))  # type: ignore[arg-type]
    return digest.hexdigest()


def layers_that_fit(plan: Plan, source: Checkpoint | None) -> tuple[list[str], list[str]]:
    """Which layers of the network of `plan` begin as those of `source`, and which anew.

    fc8 fits where it tells the same classes apart, in the same order. Convolutions must fit, all five.

    Raises:
        WrongCall: they do not, or `source` is not the network that the recipe names.
    """
    if source is None or weights_digest(source.network) != plan.recipe.init_from:
        raise WrongCall(
            "the network that the run begins with is not here",
            where=f"the recipe names one of digest {(plan.recipe.init_from or '')[:12]}…",
            why="its first weights decide all that follows",
            remedy="name its run folder or checkpoint by --init-from",
        )
    shapes = parameter_shapes(plan.recipe, plan.num_classes, plan.side)
    layers = list(dict.fromkeys(name.partition(".")[0] for name in shapes))
    same_classes = [synset for synset, _ in source.classes] == [
        entry.synset for entry in plan.shard_set.manifest.classes
    ]
    taken: list[str] = []
    new: list[str] = []
    for layer in layers:
        names = [f"{layer}.weight", f"{layer}.bias"]
        fits = all(shape_of(source.network.get(name)) == shapes[name] for name in names)
        if layer == "fc8" and not same_classes:
            fits = False
        if not fits and layer not in _MAY_BE_NEW:
            raise WrongCall(
                f"{layer} of the network to begin with does not fit",
                where=f"{shape_of(source.network.get(names[0]))} there, {shapes[names[0]]} here",
                why="without its convolutions nothing of what it learned is left",
                remedy=f"--width {source.recipe.width:g}, as it was trained",
            )
        (taken if fits else new).append(layer)
    return taken, new


def begin_with(network: Network, plan: Plan, source: Checkpoint | None) -> list[str]:
    """Give a new network the layers of `source` that fit; says which, and which begin anew. Raises as above."""
    taken, new = layers_that_fit(plan, source)
    assert source is not None
    state = network.state_dict()
    state |= {
        f"{layer}.{kind}": source.network[f"{layer}.{kind}"] for layer in taken for kind in ("weight", "bias")
    }
    network.load_state_dict(state)
    begun = f"begins with {', '.join(taken)} of a network of {source.num_classes:,} classes"
    return [f"{begun}, after step {source.step:,}" + (f"; new: {', '.join(new)}" if new else "")]
