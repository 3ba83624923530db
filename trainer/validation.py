"""A run looks at its validation split, and what follows from that for its rates and its end."""

from __future__ import annotations

import dataclasses
import time
from contextlib import ExitStack

from torch import nn

from ..pipeline import Loader
from .evaluate import Evaluation, evaluate, evaluation_loader
from .interrupt import Interrupt
from .outcome import Reporter
from .plan import Plan
from .saving import Progress


class Validation:
    """The evaluations of one run, with the loader that they share."""

    def __init__(self, plan: Plan, reporter: Reporter, stack: ExitStack) -> None:
        self._plan, self._reporter, self._stack = plan, reporter, stack
        self._loader: Loader | None = None

    def look(self, network: nn.Module, stop: Interrupt) -> tuple[Evaluation | None, float]:
        """The evaluation and its seconds, without those of building its loader; None: a rank was asked to stop.

        Raises:
            NotFinite: outputs are no numbers.
        """
        plan, split = self._plan, self._plan.val_split
        assert split is not None
        if self._loader is None:
            # Kept: on a card building one takes longer than the evaluation.
            loader = evaluation_loader(plan.recipe, plan.shard_set, split, plan.machine)
            self._loader = self._stack.enter_context(loader)
        if plan.machine.ranks.first:
            self._reporter.evaluating(split, self._loader.num_samples)
        began = time.perf_counter()
        evaluation = evaluate(network, self._loader, ranks=plan.machine.ranks, stop=stop)
        return evaluation, time.perf_counter() - began


def after_evaluation(progress: Progress, evaluation: Evaluation, plan: Plan) -> Progress:
    """What is known of the run once its network was evaluated; rates may have dropped, or the run have ended."""
    step, error, plateau = progress.step, evaluation.top1_error, progress.plateau
    names = ("split", "views", "samples", "loss", "top1_error", "top5_error")
    seen = {name: getattr(evaluation, name) for name in names} | {"step": step}
    if plan.recipe.drop_on == "epochs":
        plateau = plateau.seen(step, error)
    elif step % plan.steps_per_epoch == 0:
        plateau = plateau.after(step, error, recipe=plan.recipe, steps_per_epoch=plan.steps_per_epoch)
    # Else it is the end that --max-steps set; a run that goes on would not have looked here.
    return dataclasses.replace(progress, evaluated_step=step, evaluation=seen, plateau=plateau)


def drop_in_words(before: Progress, after: Progress) -> str | None:
    """What an evaluation made of the rates, or of the run; None: nothing."""
    plateau = after.plateau
    if plateau.drops == before.plateau.drops and not plateau.stopped:
        return None
    what = "the run ends" if plateau.stopped else "rates drop"
    best = f"{100 * (plateau.best_error or 0):.2f} %"
    return (
        f"{what} after step {after.step:,}: the best validation error, {best}, is that of step "
        f"{plateau.best_step:,}"
    )
