"""How many bad images a build may meet, and what happens beyond that."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal

from ...shards import AlexshardError, WrongCall, printable
from .sources import Refusal

SHOWN = 5  # reasons in a message
_NUMBER = re.compile(r"(?P<count>[0-9]{1,15})|(?P<percentage>[0-9]{1,3}(\.[0-9]{1,15})?) ?%")


class TooManyBad(AlexshardError):
    """More images of the source are bad than the build may leave out."""


@dataclass(frozen=True, slots=True)
class MaxBad:
    """The most images that may be left out: a count, or a percentage of all images found, rounded up.

    >>> [MaxBad.parse("0.1%").allowed(found) for found in (16, 1_261_406)], MaxBad.parse("3").allowed(16)
    ([1, 1262], 3)
    """

    number: Decimal
    is_percentage: bool

    @classmethod
    def parse(cls, text: str) -> MaxBad:
        number = _NUMBER.fullmatch(text)
        if number is None or Decimal(number["percentage"] or 0) > 100:
            raise WrongCall(
                f"--max-bad {text!r} is neither a count nor a percentage", remedy="for example 10 or 0.1%"
            )
        return cls(Decimal(number["count"] or number["percentage"]), number["count"] is None)

    def __str__(self) -> str:
        return f"{self.number.normalize():f}{'%' if self.is_percentage else ''}"

    def allowed(self, found: int) -> int:
        return math.ceil(self.number * found / 100) if self.is_percentage else int(self.number)

    def check(self, refusals: Sequence[Refusal], found: int, kept_at: str) -> None:
        """Raise TooManyBad where the refusals are more than is allowed.

        Args:
            kept_at: the file in which they are listed, for the message.
        """
        if len(refusals) <= self.allowed(found):
            return
        first = "".join(f"\n    {printable(str(refusal))}" for refusal in refusals[:SHOWN])
        raise TooManyBad(
            f"{len(refusals):,} bad images so far, and of {found:,} at most {self.allowed(found):,} may be "
            f"(--max-bad {self}):{first}",
            where=kept_at,
            why="so many bad images mean a damaged source more often than bad luck",
            remedy="mend the source, or allow more with --max-bad, up to 100%",
        )
