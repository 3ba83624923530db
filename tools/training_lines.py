"""How a run of `alextrain` tells how it goes: plain lines on stderr."""

from __future__ import annotations

import math
import time

import click

from ..trainer import Evaluation, Record, Reporter
from .terminal import PLAIN_LINE_EVERY_S, duration


class Lines(Reporter):
    """Figures of training every few seconds, of evaluation always."""

    printed = -math.inf

    def say(self, line: str) -> None:
        click.echo(line, err=True)

    def rate(self, images_per_s: float, waiting: float, images_left: int) -> None:
        self.say(
            f"measured: {images_per_s:,.1f} images/s, {100 * waiting:.0f} % of the time waiting for batches "
            f"(the {'loader' if waiting > 0.1 else 'network'} sets the pace); "
            f"{duration(images_left / images_per_s)} of training left"
        )

    def record(self, record: Record, evaluation: Evaluation | None = None) -> None:
        if evaluation is None and time.monotonic() - self.printed < PLAIN_LINE_EVERY_S:
            return
        if evaluation is None:
            self.printed = time.monotonic()
        self.say(
            f"{record.kind:5}  epoch {record.epoch:.2f}  step {record.step:,}  loss {record.loss:.4f}  "
            f"top-1 {100 * record.top1_error:.1f} %  top-5 {100 * record.top5_error:.1f} %  "
            f"rate {record.lr:g}  {record.images_per_s:,.1f} images/s"
        )
