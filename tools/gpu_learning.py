"""G8 of `tools/gpu_check`: ten classes trained for as long as there is time, by `alextrain run`.

The schedule is that of the preset, stretched over the epochs that fit; biases that begin at 1 begin at 0.1, which
leaves the plateau at ln(classes) sooner (fidelity.md §8).
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from .gpu_processes import alextrain, figures
from .gpu_report import Row
from .gpu_scene import Part, Scene

START_S = 25.0  # a process with a card until its first step, choice of decoder included
EVALUATION_S = 30.0  # one view and ten views at the end, each in a process
OF_SPEED = 0.5  # of G4's images/s: epochs of a small set end again and again
SLOWEST = 20.0  # images/s, where G4 gave none
POINTS, LINES = 6, 50  # of the curve: shown, and kept in the JSON beside those at the ends of epochs
BIAS = 0.1


def parts(_scene: Scene) -> Iterator[Part]:
    """One run and its evaluations."""
    yield Part("ten classes", _trained, needs_s=START_S + EVALUATION_S + 10)


def _trained(scene: Scene) -> Iterable[Row]:
    sizes, shard_set = scene.sizes, scene.sets.images
    samples = shard_set.manifest.splits["train"].samples
    batch_size = min(sizes.batches[0], max(1, samples // 4))
    steps_per_epoch = samples // batch_size
    time_s = max(1.0, scene.left_s - (START_S + EVALUATION_S if scene.on_card else 0.0))
    rate = OF_SPEED * scene.found.get("fed", SLOWEST / OF_SPEED)
    steps = max(1, int(time_s * rate / batch_size))
    if sizes.learning is not None:
        steps = min(steps, sizes.learning)
    epochs = max(1, steps // steps_per_epoch)
    steps = min(steps, epochs * steps_per_epoch)
    run = scene.folder / "run-learning"
    precision = "bf16" if scene.on_card else "fp32"
    began = time.monotonic()
    alextrain(
        scene,
        *("run", "--shards", shard_set.shown, "--out", run, "--device", scene.device),
        *("--preset", "original", "--width", sizes.width, "-b", batch_size, "--bias", BIAS),
        *("--precision", precision, "--epochs", epochs, "--max-steps", steps),
        *("--eval-every", max(1, epochs // POINTS), "--log-every", max(1, steps // LINES)),
        timeout_s=START_S + max(time_s, 30.0),
    )
    seconds = time.monotonic() - began
    records, views = figures(run, "train"), figures(run, "val")
    done = records[-1]["step"]
    about = f"{scene.sets.about(shard_set)}, batch {batch_size}, {precision}, bias {BIAS}, {sizes}"
    yield Row(
        f"trained: {about}",
        f"{done:,} steps, {done / steps_per_epoch:.1f} epochs, {done * batch_size:,} images",
        n=f"{seconds:.0f} s with its start",
        values={"steps": done, "epochs": done / steps_per_epoch, "seconds": seconds},
    )
    speeds = sorted(record["images_per_s"] for record in records[len(records) // 4 :])
    yield Row.of_runs("speed while it trained, by its lines of figures", "images/s", speeds)
    chance = math.log(shard_set.manifest.num_classes)
    finite = all(math.isfinite(record["loss"]) for record in records)
    yield Row(
        "loss by steps",
        f"{_curve(records, 'loss', '{:.3f}')}; chance is {chance:.3f}",
        n=f"{len(records)} lines",
        verdict="right" if finite else "wrong",
        values={"steps": [each["step"] for each in records], "losses": [each["loss"] for each in records]},
    )
    if views:
        yield Row(
            "top-1 error on the images held out, by steps",
            _curve(views, "top1_error", "{:.1%}"),
            n=f"{len(views)} evaluations",
            values={
                "steps": [each["step"] for each in views],
                "top1_errors": [each["top1_error"] for each in views],
            },
        )
        for number in (1, 10):
            yield _evaluated(scene, run, number)


def _evaluated(scene: Scene, run: object, views: int) -> Row:
    text = alextrain(scene, "eval", run, "--views", views, "--device", scene.device, "--json")
    found = json.loads(text[text.index("{\n") :])
    return Row(
        f"{'one view' if views == 1 else 'ten views'} of each image held out",
        f"top-1 error {100 * found['top1_error']:.2f} %, top-5 {100 * found['top5_error']:.2f} %, "
        f"loss {found['loss']:.3f}; {found['images_per_s']:,.0f} images/s",
        n=f"{found['samples']:,} images",
        values={name: found[name] for name in ("top1_error", "top5_error", "loss", "images_per_s", "samples")},
    )


def _curve(records: Sequence[Mapping[str, Any]], name: str, shown: str) -> str:
    """Some points of it, the first and the last among them."""
    last = len(records) - 1
    places = sorted({round(last * point / (POINTS - 1)) for point in range(POINTS)})
    return ", ".join(f"{records[place]['step']:,}: {shown.format(records[place][name])}" for place in places)
