"""A run from its first step to its last, through stops and resumptions.

    shard set ─► Feeder ─► Stepper (network, masks, momentum) ─► figures, every few steps ─► metrics.jsonl
                              └─► a checkpoint at the start, every few minutes or steps, after the best evaluation
                                  so far, and at the end; evaluation after every epoch

What a step needs is a function of its number (schedule, masks, order, augmentation), so a checkpoint is the
network, its momentum, the number, and the loader's position. No step waits for a figure: sums stay on the device,
and a line of them is written when it has come over by itself. No step waits for a disk either (keeper.py).

Under torchrun every rank runs this, with its slice of each batch and of the evaluated split; the first one writes
and speaks. What they do together they do after the same steps: sums of figures, the end of an evaluation, a stop.
"""

from __future__ import annotations

import dataclasses
import signal
import time
from collections import deque
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from ..pipeline import span
from ..shards import AlexshardError, ShardSet
from .agreeing import alone, same_on_all, together
from .beginning import begin_with, layers_that_fit
from .book import Book
from .checkpoint import Checkpoint
from .evaluate import Evaluation, NotFinite
from .feeding import Fed, Feeder
from .interrupt import Interrupt, stopping_in_order
from .machine import Machine
from .outcome import Diverged, Outcome, OutOfMemory, Reporter, others_there
from .plan import Plan, loading_line
from .ranks import Agreement
from .recipe import Recipe
from .records import FIGURES, Record
from .run_folder import RunFolder
from .saving import OVERDUE, Progress, SaveEvery, Saver
from .schedule import Schedule
from .step import Stepper, out_of_memory
from .towers import Crossed, TwoTowers, build_network
from .validation import Validation, after_evaluation, drop_in_words
from .window import Leash, Line, Window

Rates = dict[str, float | None]  # by group; None: frozen


def train(
    recipe: Recipe,
    shard_set: ShardSet,
    folder: Path,
    machine: Machine,
    *,
    eval_every: int = 1,
    log_every: int | None = None,
    save_every: SaveEvery | None = None,
    keep: int = 2,
    init_from: Checkpoint | None = None,
    reporter: Reporter | None = None,
) -> Outcome:
    """Train by `recipe` into `folder`, from where a run stands there, until done or until a signal asks to stop.

    Args:
        eval_every: epochs; 0 evaluates at the end alone.
        log_every: steps; None gives at least twenty lines an epoch where it has so many steps.
        save_every: when checkpoints are written; None: every five minutes, with a line of figures.
        keep: how many of the newest are kept, besides the best.
        init_from: whose weights the run begins with, where `recipe.init_from` is its digest; of no matter to a run
            that has begun.

    On SIGINT, SIGTERM, SIGUSR1 or SIGHUP the step is finished and a checkpoint written; `Outcome.stopped_by` says
    so.

    Raises:
        WrongCall: recipe, shard set, machine and folder do not go together, another process trains there, or the
            run there has another recipe; nothing has been written then.
        BadCheckpoint: all checkpoints of the run there are damaged, or it is of another shard set.
        CannotReadNow, LaterFormat: one cannot be read now, or by this version; it and the rest stay as they are.
        Diverged: a loss or a weight is not finite.
        OutOfMemory: a step does not fit; says which batch does.
        NotSaved: the last state could not be written.
        DamagedRun: metrics.jsonl of the run cannot be read.
    """
    reporter = reporter or Reporter()
    plan = Plan.of(recipe, shard_set, machine, eval_every=eval_every)
    run_folder = RunFolder(folder)
    if recipe.init_from is not None and not run_folder.holds_run:
        layers_that_fit(plan, init_from)  # before the folder is made
    with ExitStack() as stack:
        stack.enter_context(others_there(machine.ranks))
        remark = alone(run_folder, machine, stack)

        def standing() -> Checkpoint | None:
            if not run_folder.holds_run:
                return None
            found = run_folder.load(say=reporter.warn if machine.ranks.first else _nothing)
            plan.check_continues(found)
            return found

        resume = together(machine.ranks, standing)
        same_on_all(run_folder, machine, resume)  # also before one might set aside what another looks for
        if remark is not None:
            reporter.warn(remark)
        machine.prepare(recipe.precision)
        interrupt = stack.enter_context(stopping_in_order())
        try:
            run = _Run(plan, run_folder, interrupt, reporter, eval_every, log_every, stack)
        except Exception as error:
            if not out_of_memory(error):
                raise
            device = " and ".join(map(str, machine.devices))
            raise OutOfMemory(
                recipe.batch_size, machine.ranks.count, None, device, run_folder.newest_words
            ) from error
        try:
            run.open(resume, init_from, Saver(plan, run_folder, save_every or SaveEvery(), keep, reporter))
            outcome = run.go()
        except AlexshardError as error:
            if machine.ranks.first:
                run_folder.write_end("failed", run.step, what=error.what, remedy=error.remedy)
            raise
        if machine.ranks.first:
            stopped = outcome.stopped_by
            run_folder.write_end(
                "done" if stopped is None else "stopped",
                outcome.step,
                number=None if stopped is None else stopped.name,
            )
        return outcome


def _nothing(_: str) -> None:
    """What the other ranks say."""


class _Run:
    def __init__(
        self,
        plan: Plan,
        folder: RunFolder,
        interrupt: Interrupt,
        reporter: Reporter,
        eval_every: int,
        log_every: int | None,
        stack: ExitStack,
    ) -> None:
        self.folder, self.interrupt, self.reporter, self.eval_every = folder, interrupt, reporter, eval_every
        self.recipe, self.plan, self.machine, self.ranks = plan.recipe, plan, plan.machine, plan.machine.ranks
        self.log_every = log_every or max(1, min(100, plan.steps_per_epoch // 20))
        self.feeder = stack.enter_context(
            Feeder(self.recipe, plan.shard_set, self.machine, jitter_steps=plan.schedule.jitter_steps)
        )
        network = build_network(self.recipe, plan.num_classes, plan.side, self.machine.devices)
        self.stepper = Stepper(
            network,
            self.recipe,
            plan.schedule,
            ranks=self.ranks,
            compiled=self.machine.compiled,
            graphs=self.machine.graphs,
        )
        self.progress = Progress(0)
        self.evaluation: Evaluation | None = None
        self.window = Window(self.ranks, self.machine.device.type)
        self.leash = Leash(self.machine.device)
        self.lines: deque[tuple[int, Rates, Line]] = deque()  # on their way
        self.agreement = Agreement(self.ranks)
        self.book = Book(plan, folder, reporter)
        self.validation = Validation(plan, reporter, stack)

    @property
    def step(self) -> int:
        """How many are done."""
        return self.progress.step

    def open(self, resume: Checkpoint | None, init_from: Checkpoint | None, saver: Saver) -> None:
        """Begin in a new folder, or take up the state of an old one."""
        self.saver = saver
        lines = []
        if resume is not None:
            resume.put_into(self.stepper.network)
            self.stepper.sgd.load_state_dict(resume.optimiser)
            self.feeder.load_state_dict(resume.loader)
            self.progress = Progress(resume.step, resume.evaluated_step, resume.evaluation, resume.plateau)
            self._follow_plateau()
            if (digest := self.recipe.init_from) is not None:
                lines = [f"began with the weights of network {digest[:12]}…, which is not read again"]
        elif self.recipe.init_from is not None:
            lines = begin_with(self.stepper.network, self.plan, init_from)
        config = self.plan.config(self.feeder.loader)
        if self.ranks.first:
            self.folder.open(step=self.step, evaluated_step=self.progress.evaluated_step)
            self.folder.write_config(config)
            self.reporter.begin(self.folder.path, config, self.step)
        if resume is not None:
            self.saver.begin(self.progress)
        self._save()
        self.saver.finish()  # however early the run ends, there is something to resume
        self.book.open(self.step)
        if self.step == 0:
            self._draw_filters()
        path = self.folder.path
        self.book.say(f"run {path}" if resume is None else f"{path} goes on after step {self.step:,}")
        for line in (*self.plan.lines(eval_every=self.eval_every), loading_line(self.feeder.loader), *lines):
            self.book.say(line)
        if self.step >= self.plan.last_step:
            self.book.say(
                "validation stopped improving: the run is over"
                if self.progress.plateau.stopped
                else "all its steps are done; a larger --max-steps may go further, up to all epochs"
            )
        self.book.say_what_is_missing()

    def go(self) -> Outcome:
        """Train to the end, or to a signal."""
        try:
            return self._go()
        except Exception as error:
            if not out_of_memory(error):
                raise
        # Here the error, and the batch that it held, are gone.
        raise self._out_of_memory()

    def _go(self) -> Outcome:
        self.window.restart()
        try:
            self._evaluate_if_due()
            while self.step < self.plan.last_step and not self.agreement.answer:
                self._epoch()
                self._evaluate_if_due()
            self._save()
        finally:
            self.book.close()
            self.saver.wait()
        self.saver.finish()
        stop = self._stop_asked() or self.agreement.settle()
        stopped_by = signal.Signals(stop) if stop else None
        return Outcome(self.folder.path, self.step, self.plan.last_step, stopped_by, self.evaluation)

    def _stop_asked(self) -> int:
        """The signal that asked any rank to stop; 0: none. All ranks ask after the same steps."""
        return self.agreement.ask(self.interrupt.signal or 0, self.saver.due_by_time())

    def _epoch(self) -> None:
        """The rest of the loader's epoch, or less where the run ends or is stopped in it."""
        batches = iter(self.feeder)
        while self.step < self.plan.last_step and not self._stop_asked():
            asked = time.perf_counter()
            batch = next(batches, None)
            if batch is None:
                break
            self.window.waited(time.perf_counter() - asked)
            self._one(batch)
            del batch  # else its memory is held while the next one is waited for
        self._log_if(True)
        self._write_lines(wait=True)
        self.book.say_arrivals()
        if self.agreement.due:
            self._save()

    def _one(self, batch: Fed) -> None:
        before = self._crossed()
        with span("step", images=batch.count):
            self.window.add(self.stepper.step(self.step, batch.images, batch.labels), batch.count)
            self.leash.queued()
        self.progress = dataclasses.replace(self.progress, step=self.step + 1)
        save = self.saver.due_by_steps(self.step)
        # A line with each: without, figures of a run that goes on from there would lack the steps before.
        self._log_if(save or self.step == 1 or self.step % self.log_every == 0)
        self._write_lines(wait=False)
        if early := self.window.speed(self.machine.synchronize):
            images_left = (self.plan.last_step - self.step) * self.recipe.batch_size
            if self.ranks.first:
                self.reporter.rate(early.images / early.seconds, early.wait_s / early.seconds, images_left)
            after = self._crossed()
            if before is not None and after is not None:
                self.book.say_crossed(after - before)
        # By the clock too, with a line; with one more only where they are rare, since that depends on the clock.
        self._log_if(self.agreement.due == OVERDUE)
        if save or (self.agreement.due and self.window.steps == 0):
            self._save()

    def _out_of_memory(self) -> OutOfMemory:
        """What to say of it: the largest batch, of a few, that fits. The network is not used again."""
        fits = self.stepper.largest_fit(self.recipe.batch_size // self.ranks.count, self.plan.side)
        device = " and ".join(map(str, self.machine.devices))
        return OutOfMemory(self.recipe.batch_size, self.ranks.count, fits, device, self.folder.newest_words)

    def _rates(self) -> Rates:
        """Of the last step, by group."""
        return dict(self.stepper.schedule.at(max(0, self.step - 1)).rates)

    def _crossed(self) -> Crossed | None:
        network = self.stepper.network
        return network.crossed if isinstance(network, TwoTowers) else None

    def _log_if(self, due: bool) -> None:
        """Take the figures of the steps since the last line; they are written when they are here."""
        if due and self.window.steps:
            line = self.window.line(self.stepper.update_ratios())
            self.lines.append((self.step, self._rates(), line))

    def _write_lines(self, *, wait: bool) -> None:
        """Write the lines that have come over from the device, or all.

        Of several ranks all write after the same step, since all end there if a loss is not finite: a line is
        written when the next one is taken, and is long here.
        """
        while self.lines and (wait or (len(self.lines) > 1 if self.ranks.count > 1 else self.lines[0][2].there)):
            step, rates, line = self.lines.popleft()
            if (bad := line.first_bad()) is not None:
                step = step - line.steps + bad + 1
                # It is that of the network before its update.
                raise self._diverged(f"the loss of step {step:,} is not finite", step - 1)
            means = line.figures()
            figures = {name: getattr(means, name) for name in (*FIGURES, "seconds")}
            updates = dict(zip(self.stepper.sgd.layers, means.updates, strict=True))
            self.book.add(self._record("train", step, rates, updates=updates, **figures))
            self.saver.tell()

    def _evaluate_if_due(self) -> None:
        """After an epoch and at the end; also first thing, where a run was stopped before it could."""
        done = self.progress.evaluated_step == self.step
        if done or not self.plan.evaluates_at(self.step, self.eval_every) or self._stop_asked():
            return
        self._check_weights()
        with self.window.paused():
            try:
                evaluation, seconds = self.validation.look(self.stepper.module, self.interrupt)
            except NotFinite as error:
                raise self._diverged(f"after step {self.step:,} {error.what}", self.step) from error
        if evaluation is None:
            # All ranks know it, but not yet which signal it was: no step more, or this evaluation would be lost.
            self._stop_asked()
            self.agreement.settle()
            return
        rates, before = self._rates(), self.progress
        self.evaluation, self.progress = evaluation, after_evaluation(before, evaluation, self.plan)
        if (words := drop_in_words(before, self.progress)) is not None:
            self._follow_plateau()
            self.book.say(words)
        figures = {name: getattr(evaluation, name) for name in FIGURES}
        self.book.add(self._record("val", self.step, rates, seconds=seconds, **figures), evaluation)
        self._draw_filters()
        if self.progress.is_best:
            self._save()

    def _record(self, kind: str, step: int, rates: Rates, **figures: Any) -> Record:
        return Record(
            kind=kind,
            epoch=step / self.plan.steps_per_epoch,
            step=step,
            lr=rates["weights"] or 0.0,
            rates=rates,
            memory_bytes=self.machine.memory_bytes(),
            **figures,
        )

    def _draw_filters(self) -> None:
        self.book.draw_filters(self.stepper.network.pieces()["conv1.weight"], self.step)

    def _follow_plateau(self) -> None:
        plateau = self.progress.plateau
        if plateau.drops:
            self.stepper.schedule = Schedule.of(self.recipe, self.plan.steps_per_epoch, plateau.drops)
        if plateau.stopped:
            self.plan = dataclasses.replace(self.plan, last_step=self.step)

    def _save(self) -> None:
        """Write the state, which all figures before it are written for. All ranks do, after the same step."""
        self._write_lines(wait=True)
        self._check_weights()
        self.book.sync()
        with self.window.paused():
            self.saver.save(self.progress, self.stepper, self.feeder.state_dict)
        self.agreement.saved()

    def _check_weights(self) -> None:
        """Losses are those of the network before its update, so the weights are looked at themselves."""
        pieces = self.stepper.network.pieces().values()
        # Least and most, since a tensor of what is finite would be as large as the weights.
        if not all(each.isfinite() for parts in pieces for part in parts for each in part.aminmax()):
            raise self._diverged(f"the weights after step {self.step:,} are not finite", self.step)

    def _diverged(self, what: str, step: int) -> Diverged:
        """`step` is that of the first state known to be bad."""
        self.saver.wait()
        return Diverged(what, self.recipe, self.folder.good_before(step))
