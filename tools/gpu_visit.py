"""A visit to a card: one question after the other, each with its share of the minutes; none stops the others."""

from __future__ import annotations

import gc
import time
import traceback
from collections.abc import Sequence

import click
import torch

from . import (
    gpu_agreement,
    gpu_ceilings,
    gpu_handover,
    gpu_learning,
    gpu_loading,
    gpu_repeating,
    gpu_together,
    gpu_towers,
    gpu_training,
)
from .gpu_report import Report, Row
from .gpu_scene import Part, Question, Scene

QUESTIONS = (
    Question("ceilings", 0.5, gpu_ceilings.parts),
    Question("G1", 1.0, gpu_agreement.parts),
    Question("G2", 1.5, gpu_loading.parts),
    Question("G3", 3.0, gpu_training.parts),
    Question("G4", 1.5, gpu_together.parts),
    Question("G5", 1.0, gpu_handover.parts),
    Question("G6", 1.0, gpu_towers.parts),
    Question("G7", 2.0, gpu_repeating.parts),
    Question("G8", 2.0, gpu_learning.parts),
)
IMAGES_2010, EPOCHS = 1_261_406, 90
IN_2012 = "five to six days on two GTX 580 (2012)"


def visit(scene: Scene, report: Report, *, minutes: float, only: Sequence[str] = ()) -> None:
    """Ask the questions, or `only` some; the last row is the headline."""
    began = time.monotonic()
    over = began + 60 * minutes
    asked = [question for question in QUESTIONS if not only or question.name in only]
    for place, question in enumerate(asked):
        # What earlier ones did not use is shared out among those that are left.
        share = question.weight / sum(each.weight for each in asked[place:])
        left_s = max(0.0, over - time.monotonic())
        scene.until = time.monotonic() + share * left_s
        try:
            for part in question.parts(scene):
                _ask(scene, report, question, part, over=over, minutes=minutes)
        except Exception as error:  # the questions after it are none the worse
            _failed(report, question.name, "what there is to ask", error)
    if not only or "G4" in only:
        report.add("headline", headline(scene))
    click.echo(f"{time.monotonic() - began:.0f} s; exit code {report.exit_code}")


def headline(scene: Scene) -> Row:
    """What the visit was for."""
    what = f"{EPOCHS} epochs of ILSVRC-2010 ({IMAGES_2010:,} images)"
    rate = scene.found.get("fed")
    if rate is None:
        return Row(what, "G4 gave no figure", verdict="left out")
    minutes = IMAGES_2010 * EPOCHS / rate / 60
    how = {"images_per_s": rate, "minutes": minutes}
    if scene.on_card and scene.sizes.full:
        return Row(what, f"{minutes:,.0f} minutes at G4's {rate:,.0f} images/s, beside {IN_2012}", values=how)
    device, without = (
        ("this card", "at another size than 2012's") if scene.on_card else ("this CPU", "without a card")
    )
    figure = f"{device} at this size ({scene.sizes}): {rate:,.0f} images/s; no headline {without}"
    return Row(what, figure, values={**how, "no_headline": True})


def _ask(scene: Scene, report: Report, question: Question, part: Part, *, over: float, minutes: float) -> None:
    """One measurement, or why not."""
    if time.monotonic() >= over:
        report.add(
            question.name, Row(part.what, f"the budget of {minutes:g} minutes was over", verdict="left out")
        )
        return
    if scene.left_s <= (part.needs_s if scene.on_card else 0):
        figure = f"of the {minutes:g} minutes too few were left for it in the share of {question.name}"
        report.add(question.name, Row(part.what, figure, verdict="left out"))
        return
    try:
        for row in part.measure(scene):
            report.add(question.name, row)
    except Exception as error:  # a card has its own ways to fail, and the rest of the visit is worth having
        _failed(report, question.name, part.what, error)
    finally:
        gc.collect()  # graphs and loaders are in circles; their memory is the next one's
        if scene.on_card:
            torch.cuda.empty_cache()


def _failed(report: Report, question: str, what: str, error: Exception) -> None:
    trace = traceback.format_exc()
    click.echo(trace, err=True)
    line = next(filter(None, str(error).splitlines()), type(error).__name__)
    report.add(question, Row(what, f"{type(error).__name__}: {line}", verdict="failed"), trace=trace)
