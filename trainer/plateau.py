"""What to say of a loss that stays at ln(classes), where a network that tells nothing apart stands.

Never more than words: no rate and no preset is changed. Source: fidelity.md §8.
"""

from __future__ import annotations

import math

from .recipe import INIT_BIAS, PRESETS, Recipe

# Reports of the text's initialisation had plateaus of 1,000 to 15,000 steps that ended. `original` should leave
# its own within the first epoch or so; on 64 images of ten classes it does by step 80 (measured.md §3).
FIRST_STEP = 1_000
PAPER_LONGEST = 15_000
CLOSE = 0.01  # of ln(classes)


def plateau_message(
    recipe: Recipe, *, num_classes: int, steps_per_epoch: int, step: int, loss: float
) -> str | None:
    """The words for a mean training loss after `step` updates, or None where there is nothing to say."""
    chance = math.log(num_classes)
    small = recipe.init_std == PRESETS["paper"]().init_std
    text = small and recipe.init_bias == INIT_BIAS
    first = FIRST_STEP if text else max(FIRST_STEP, steps_per_epoch)
    if num_classes < 2 or step < first or not abs(loss - chance) <= CLOSE * chance:  # nan is not near either
        return None
    what = f"step {step:,}: still at ln(classes), loss {loss:.4f} beside ln({num_classes:,}) = {chance:.4f}. "
    if not text:
        rate, width = recipe.learning_rate, recipe.width
        causes = {
            "first weights of std 0.01 (--init original, a new run)": small,
            f"a rate of {rate:g} where 0.01 is usual": not math.isclose(rate, 0.01),
            f"a width of {width:g} (--init-fan-in helps)": width != 1 and not recipe.init_fan_in,
            "labels that do not fit the images": True,
        }
        likely = ", ".join(cause for cause, given in causes.items() if given)
        return f"{what}This initialisation should have left it by now. Usual causes: {likely}."
    ways = "Named ways out, each a new run: --init original, or --bias 0.1."
    if step < PAPER_LONGEST:
        return what + f"With the text's initialisation 1,000 to 15,000 such steps are common. {ways}"
    return what + f"No recovery of the text's initialisation after {PAPER_LONGEST:,} steps is known. {ways}"
