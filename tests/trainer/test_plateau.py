"""Words for a loss that stays at ln(classes): not too early, not for other losses, and with what is known."""

import dataclasses
import math

import pytest
from alexshard.trainer import PRESETS
from alexshard.trainer.plateau import plateau_message


def message(preset, step, loss, *, num_classes=1000, steps_per_epoch=9375, **changes):
    recipe = dataclasses.replace(PRESETS[preset](), **changes)
    return plateau_message(recipe, num_classes=num_classes, steps_per_epoch=steps_per_epoch, step=step, loss=loss)


@pytest.mark.parametrize(("preset", "step"), [("paper", 999), ("original", 9374)])
def test_nothing_is_said_before_the_presets_first_step(preset, step):
    assert message(preset, step, math.log(1000)) is None
    assert message(preset, step + 1, math.log(1000)) is not None


@pytest.mark.parametrize("loss", [6.8, 7.0, 2.3, math.nan])
def test_nothing_is_said_of_a_loss_elsewhere(loss):
    assert message("paper", 20_000, loss) is None


def test_before_15_000_steps_paper_is_told_that_it_is_common():
    said = message("paper", 14_999, 6.9078)

    assert "still at ln(classes), loss 6.9078 beside ln(1,000) = 6.9078" in said
    assert "1,000 to 15,000 such steps are common" in said
    assert "--init original, or --bias 0.1" in said


def test_after_15_000_steps_paper_is_told_that_no_recovery_is_known():
    assert "No recovery of the text's initialisation after 15,000 steps is known" in message("paper", 15_000, 6.91)


def test_original_is_told_what_usually_causes_it():
    said = message("original", 1000, 2.30, num_classes=10, steps_per_epoch=15)

    assert said.endswith("should have left it by now. Usual causes: labels that do not fit the images.")


def test_the_first_weights_decide_and_not_the_name_of_the_preset():
    original, paper = (PRESETS[name]().init_std for name in ("original", "paper"))

    assert message("paper", 2000, 6.9078, init_std=original) is None
    assert "should have left it" in message("paper", 9375, 6.9078, init_std=original)
    assert message("original", 2000, 6.9078, init_std=paper) == message("paper", 2000, 6.9078)


def test_a_way_already_taken_is_not_offered():
    bias = PRESETS["paper"]().with_initial_bias(0.1).init_bias
    said = message("paper", 9375, 6.9078, init_bias=bias, width=0.25)

    assert "--init original" in said
    assert "a width of 0.25 (--init-fan-in helps)" in said
    assert "--bias" not in said
    assert "--init-fan-in" not in message("paper", 9375, 6.9078, init_bias=bias, width=0.25, init_fan_in=True)
