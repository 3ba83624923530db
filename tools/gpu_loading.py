"""G2 of `tools/gpu_check`: how many images a second the loader gives, with nobody but itself at work."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Iterator
from contextlib import closing
from functools import partial
from itertools import islice

from ..pipeline import Loader, Stages
from ..trainer import Ranks
from .gpu_forms import Form, forms, opened
from .gpu_report import Row, number
from .gpu_scene import Part, Scene
from .loader_figures import Run
from .loader_meter import Meter, timed


def parts(scene: Scene) -> Iterator[Part]:
    """Every form, JPEG and raw."""
    for raw in (False, True):
        for form in forms(scene, raw=raw):
            yield Part(f"{form.name}, {'raw' if raw else 'JPEG'}", partial(_measured, form=form, raw=raw))


def _measured(scene: Scene, *, form: Form, raw: bool) -> Iterable[Row]:
    shard_set = scene.sets.raw if raw else scene.sets.many
    batch_size = scene.sizes.batches[0]
    loader = opened(
        scene,
        form,
        shard_set,
        batch_size=batch_size,
        augment="original",
        output="bfloat16" if scene.on_card else "float32",  # what the trainer takes there
        channels_last=True,
    )
    what = f"{form.name}, {'raw' if raw else 'JPEG'}, batch {batch_size}"
    if isinstance(loader, str):
        yield Row(what, loader, verdict="left out")
        return
    with loader:
        runs = [_run(loader, scene.sizes.run_s) for _ in range(scene.sizes.runs)]
        threads, share = loader.threads, loader.split_share
    rates = [run.images_per_s for run in runs]
    cores = statistics.median((run.user_s + run.system_s) / run.seconds for run in runs)
    device_bytes = max(run.device_bytes for run in runs)
    note = f"{number(cores)} cores busy, {threads} threads"
    note += f", {100 * share:.0f} % by the card" if share is not None and scene.on_card else ""
    note += f", {device_bytes / 2**30:.1f} GiB in use on the card" if scene.on_card else ""
    yield Row.of_runs(
        f"{what}, {scene.sets.about(shard_set)}",
        "images/s",
        rates,
        note=note,
        cores=cores,
        device_bytes=device_bytes,
        split_share=share,
    )
    name = "loader raw" if raw else "loader jpeg"
    scene.found[name] = max(scene.found.get(name, 0.0), statistics.median(rates))


def _run(loader: Loader, seconds: float) -> Run:
    """What was made before the clock began is not counted, at either end."""
    stages, meter = Stages(loader), Meter(loader.device)
    ahead = stages.ahead("loader")
    whole = len(loader) - 2 * ahead
    if whole < ahead:  # an epoch is over at once, so its start is a part of the figure
        with closing(stages.batches("loader")) as work:
            return timed(work, seconds=seconds, ahead=ahead, meter=meter, ranks=Ranks())
    loader.load_state_dict({**loader.state_dict(), "epoch": 0, "position": 0})
    with closing(iter(loader)) as batches:  # type: ignore[type-var]
        for _ in range(ahead):
            next(batches)
        meter.start()
        images = 0
        for batch in islice(batches, whole):
            images += len(batch)
            del batch  # a trainer would have taken its step by now
            meter.look()
            if meter.elapsed >= seconds:
                break
        return meter.run(images)
