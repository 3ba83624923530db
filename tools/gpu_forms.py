"""The ways of making a batch that `tools/gpu_check` compares; on the cores each has its stand-in."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..pipeline import Loader
from ..shards import ShardSet, WrongCall
from .gpu_scene import Scene


@dataclass(frozen=True, slots=True)
class Form:
    """One way: what it is called here, and the loader's arguments."""

    name: str
    options: Mapping[str, Any]
    needed: bool = True  # else one that this host need not have


def forms(scene: Scene, *, raw: bool) -> list[Form]:
    """All ways of making batches of a set on this device; a raw set has nothing to decode."""
    threads = Form("threads in C", {"backend": "threads"}, needed=False)
    if raw:
        return [Form("DALI", {"backend": "dali", "decoder": "cores"}, needed=scene.on_card), threads]
    names = {"card": "card", "cores": "cores + graph", "split": "split"}
    if not scene.on_card:
        names = {"card": "DALI's decoder (no card)", "cores": "cores + graph", "split": "split (no card)"}
    by_dali = [Form(name, {"backend": "dali", "decoder": key}, scene.on_card) for key, name in names.items()]
    return [*by_dali, threads]


def opened(scene: Scene, form: Form, shard_set: ShardSet, **options: Any) -> Loader | str:
    """The loader; or why this host has no such form, where it need not have it."""
    try:
        return Loader(shard_set, device=scene.device, **{**form.options, **options})
    except WrongCall as error:
        if form.needed:
            raise
        return str(error).partition("\n")[0]
