"""A run from its first step to its last, through stops and resumptions.

    shard set ─► Feeder ─► Stepper (network, masks, momentum) ─► figures, every few steps ─► metrics.jsonl
                              └─► checkpoint.pt, at the start, every few minutes with a line of figures, at the
                                  end; evaluation after every epoch

What a step needs is a function of its number (schedule, masks, order, augmentation), so a checkpoint is the
network, its momentum, the number, and the loader's position. No step waits for a figure: sums stay on the device,
and a line of them is written when it has come over by itself.

Under torchrun every rank runs this, with its slice of each batch and of the evaluated split; the first one writes
and speaks. What they do together they do after the same steps: sums of figures, the end of an evaluation, a stop.
"""

from __future__ import annotations

import signal
import time
from collections import deque
from contextlib import ExitStack
from pathlib import Path

from ..pipeline import Arrivals, Loader, RemoteShelf, span
from ..shards import ShardSet, WrongCall, byte_size
from .checkpoint import Checkpoint
from .evaluate import Evaluation, evaluate, evaluation_loader
from .feeding import Fed, Feeder
from .interrupt import Interrupt, stopping_in_order
from .machine import Machine
from .outcome import Diverged, Outcome, Reporter, others_there
from .plan import Plan, loading_line
from .plateau import plateau_message
from .ranks import Agreement
from .recipe import Recipe
from .run_folder import Record, RunFolder, TensorBoard
from .step import Stepper
from .towers import Crossed, TwoTowers, build_network, crossing_bytes
from .window import Leash, Line, Window

CHECKPOINT_EVERY_S = 300.0  # of a run that is not stopped
CHECKPOINT_EPOCH_AFTER_S = 60.0  # an epoch that ends sooner after the last one is not worth one


def train(
    recipe: Recipe,
    shard_set: ShardSet,
    folder: Path,
    machine: Machine,
    *,
    resume: Checkpoint | None = None,
    eval_every: int = 1,
    log_every: int | None = None,
    reporter: Reporter | None = None,
) -> Outcome:
    """Train by `recipe` into `folder`, or go on there from `resume`, until done or until SIGINT or SIGTERM.

    `eval_every` counts epochs, 0 evaluates at the end alone; `log_every` counts steps, None gives at least twenty
    lines an epoch where it has so many steps. On a signal the step is finished and a checkpoint written;
    `Outcome.stopped_by` says so.

    Raises:
        WrongCall: recipe, shard set, machine and folder do not go together; nothing has been written then.
        BadCheckpoint: the checkpoint to resume from is damaged or of another shard set.
        Diverged: a loss or a weight is not finite.
        DamagedRun: metrics.jsonl of the run to resume cannot be read.
    """
    reporter = reporter or Reporter()
    plan = Plan.of(recipe, shard_set, machine)
    if resume is not None:
        plan.check_continues(resume)
    run_folder = RunFolder(folder)
    _check_folder(run_folder, machine, resumed=resume is not None)
    machine.prepare(recipe.precision)
    with stopping_in_order() as interrupt, others_there(machine.ranks), ExitStack() as stack:
        run = _Run(plan, interrupt, reporter, eval_every, log_every, stack)
        run.open(run_folder, resume)
        return run.go()


def _check_folder(folder: RunFolder, machine: Machine, *, resumed: bool) -> None:
    """The first rank looks, since it makes the folder; what it finds is refused on all."""
    refusal: WrongCall | None = None
    if machine.ranks.first:
        try:
            folder.check(resumed=resumed)
        except WrongCall as error:
            refusal = error
    for each in machine.ranks.gathered(refusal):
        if each is not None:
            raise each


class _Run:
    def __init__(
        self,
        plan: Plan,
        interrupt: Interrupt,
        reporter: Reporter,
        eval_every: int,
        log_every: int | None,
        stack: ExitStack,
    ) -> None:
        self.interrupt, self.reporter, self.eval_every = interrupt, reporter, eval_every
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
        self.step, self.evaluated_step = 0, -1
        self.evaluation: Evaluation | None = None
        self.window = Window(self.ranks, self.machine.device.type)
        self.leash = Leash(self.machine.device)
        self.lines: deque[tuple[int, float, Line]] = deque()  # step, rate and figures that are on their way
        self.agreement = Agreement(self.ranks)
        self.saved_at = time.perf_counter()
        self.next_plateau = 0
        self.arrived = Arrivals()
        self._stack = stack
        self._evaluation_loader: Loader | None = None

    def open(self, folder: RunFolder, resume: Checkpoint | None) -> None:
        """Begin in a new folder, or take up the state of an old one."""
        self.folder = folder
        if resume is not None:
            resume.put_into(self.stepper.network)
            self.stepper.sgd.load_state_dict(resume.optimiser)
            self.feeder.load_state_dict(resume.loader)
            self.step, self.evaluated_step = resume.step, resume.evaluated_step
        self.saved = self.step, self.evaluated_step
        if self.ranks.first:
            folder.open(step=self.step, evaluated_step=self.evaluated_step)
            folder.write_config(self.plan.config(self.feeder.loader))
        self._save_if(resume is None)  # however early the run ends, there is something to resume
        self.board = TensorBoard(folder.path, from_step=self.step + 1) if self.ranks.first else None
        self._say(f"run {folder.path}" if resume is None else f"{folder.path} goes on after step {self.step:,}")
        for line in (*self.plan.lines(eval_every=self.eval_every), loading_line(self.feeder.loader)):
            self._say(line)
        if self.step >= self.plan.last_step:
            self._say("all its steps are done; a larger --max-steps may go further, up to all epochs")
        if self.board is not None and not self.board.installed:
            self._say("TensorBoard is not installed (extra: tensorboard): figures in metrics.jsonl alone")

    def go(self) -> Outcome:
        """Train to the end, or to a signal."""
        self.window.restart()
        try:
            self._evaluate_if_due()
            while self.step < self.plan.last_step and not self.agreement.answer:
                self._epoch()
                self._evaluate_if_due()
            self._save_if((self.step, self.evaluated_step) != self.saved)
        finally:
            if self.board is not None:
                self.board.close()
        stop = self._stop_asked() or self.agreement.settle()
        stopped_by = signal.Signals(stop) if stop else None
        return Outcome(self.folder.path, self.step, self.plan.last_step, stopped_by, self.evaluation)

    def _stop_asked(self) -> int:
        """The signal that asked any rank to stop; 0: none. All ranks ask after the same steps."""
        return self.agreement.ask(self.interrupt.signal or 0)

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
        self._say_arrivals()
        now = time.perf_counter()
        self._save_if(
            self.step % self.plan.steps_per_epoch == 0 and now - self.saved_at > CHECKPOINT_EPOCH_AFTER_S
        )

    def _say(self, line: str) -> None:
        if self.ranks.first:
            self.reporter.say(line)

    def _say_arrivals(self) -> None:
        """Of a set in a store: what came over the network since this was said last."""
        shelf = self.plan.shard_set.shelf
        if not isinstance(shelf, RemoteShelf):
            return
        now, before = shelf.statistics(), self.arrived
        if now.shards > before.shards:
            self._say(
                f"{now.shards - before.shards:,} shards ({byte_size(now.bytes - before.bytes)}) came from "
                f"{shelf.shown}; {now.stalled_s - before.stalled_s:.1f} s were spent waiting for them"
            )
        self.arrived = now

    def _one(self, batch: Fed) -> None:
        before = self._crossed()
        with span("step", images=batch.count):
            self.window.add(self.stepper.step(self.step, batch.images, batch.labels), batch.count)
            self.leash.queued()
        self.step += 1
        self._log_if(self.step == 1 or self.step % self.log_every == 0)
        self._write_lines(wait=False)
        if early := self.window.speed(self.machine.synchronize):
            images_left = (self.plan.last_step - self.step) * self.recipe.batch_size
            if self.ranks.first:
                self.reporter.rate(early.images / early.seconds, early.wait_s / early.seconds, images_left)
            self._say_crossed(before)
        # With a line alone: a checkpoint in the middle of a window would make figures depend on the clock.
        self._save_if(not self.window.steps and time.perf_counter() - self.saved_at > CHECKPOINT_EVERY_S)

    def _crossed(self) -> Crossed | None:
        network = self.stepper.network
        return network.crossed if isinstance(network, TwoTowers) else None

    def _say_crossed(self, before: Crossed | None) -> None:
        """Of two towers: what crossed between them in this step, beside what should have."""
        after = self._crossed()
        if after is None or before is None:
            return
        step = after - before
        expected = crossing_bytes(self.recipe, self.plan.side, self.recipe.batch_size)
        self._say(
            f"crossed between the towers in this step: {step.forward_bytes:,} bytes of activations, "
            f"{step.backward_bytes:,} of gradients, {step.forward_bytes + step.backward_bytes:,} counted; "
            f"{expected:,} as the towers of 2012 exchange. Images, handed to both: {step.image_bytes:,}"
        )

    def _log_if(self, due: bool) -> None:
        """Take the figures of the steps since the last line; they are written when they are here."""
        if due and self.window.steps:
            self.lines.append((self.step, self.stepper.sgd.rates["weights"], self.window.line()))

    def _write_lines(self, *, wait: bool) -> None:
        """Write the lines that have come over from the device, or all.

        Of several ranks all write after the same step, since all end there if a loss is not finite: a line is
        written when the next one is taken, and is long here.
        """
        while self.lines and (wait or (len(self.lines) > 1 if self.ranks.count > 1 else self.lines[0][2].there)):
            step, rate, line = self.lines.popleft()
            if (bad := line.first_bad()) is not None:
                step = step - line.steps + bad + 1
                raise Diverged(f"the loss of step {step:,} is not finite", self.recipe, self.folder.checkpoint)
            figures = line.figures()
            self._write(
                Record(
                    kind="train",
                    epoch=step / self.plan.steps_per_epoch,
                    step=step,
                    loss=figures.loss,
                    top1_error=figures.top1_error,
                    top5_error=figures.top5_error,
                    lr=rate,
                    images_per_s=figures.images_per_s,
                    wait_s=figures.wait_s,
                )
            )
            self._watch_plateau(step, figures.loss)

    def _watch_plateau(self, step: int, loss: float) -> None:
        if step < self.next_plateau:
            return
        message = plateau_message(
            self.recipe,
            num_classes=self.plan.num_classes,
            steps_per_epoch=self.plan.steps_per_epoch,
            step=step,
            loss=loss,
        )
        if message is not None:
            self._say(message)
            self.next_plateau = 2 * step

    def _evaluate_if_due(self) -> None:
        """After an epoch and at the end; also first thing, where a run was stopped before it could."""
        split, done = self.plan.val_split, self.evaluated_step == self.step
        if split is None or done or not self.plan.evaluates_at(self.step, self.eval_every):
            return
        if self._stop_asked():
            return
        self._check_weights()
        with self.window.paused():
            if self._evaluation_loader is None:
                # Kept: on a card building one takes longer than the evaluation.
                loader = evaluation_loader(self.recipe, self.plan.shard_set, split, self.machine)
                self._evaluation_loader = self._stack.enter_context(loader)
            evaluation = evaluate(
                self.stepper.module, self._evaluation_loader, ranks=self.ranks, stop=self.interrupt
            )
        if evaluation is None:
            return
        self.evaluation, self.evaluated_step = evaluation, self.step
        record = Record(
            kind="val",
            epoch=self.step / self.plan.steps_per_epoch,
            step=self.step,
            loss=evaluation.loss,
            top1_error=evaluation.top1_error,
            top5_error=evaluation.top5_error,
            lr=self.stepper.sgd.rates["weights"],
            images_per_s=evaluation.images_per_s,
            wait_s=evaluation.wait_s,
        )
        self._write(record, evaluation)

    def _write(self, record: Record, evaluation: Evaluation | None = None) -> None:
        if self.board is None:
            return
        self.folder.append(record)
        self.board.add(record)
        self.reporter.record(record, evaluation)

    def _save_if(self, due: bool) -> None:
        """Write the state; only where all figures are written."""
        if not due:
            return
        self._write_lines(wait=True)
        self._check_weights()
        if self.ranks.first:
            with self.window.paused():
                Checkpoint(
                    recipe=self.recipe,
                    num_classes=self.plan.num_classes,
                    side=self.plan.side,
                    shard_set=self.plan.shard_set.digest,
                    step=self.step,
                    evaluated_step=self.evaluated_step,
                    loader=self.feeder.state_dict(),
                    network=self.stepper.network.state_dict(),
                    optimiser=self.stepper.sgd.state_dict(),
                ).save(self.folder.checkpoint)
        self.saved, self.saved_at = (self.step, self.evaluated_step), time.perf_counter()

    def _check_weights(self) -> None:
        """Losses are those of the network before its update, so the weights are looked at themselves."""
        if not all(part.isfinite().all() for parts in self.stepper.network.pieces().values() for part in parts):
            what = f"the weights after step {self.step:,} are not finite"
            raise Diverged(what, self.recipe, self.folder.checkpoint)
