"""Words for a loss that stays at ln(classes): not too early, not for other losses, and with what is known."""

import math

import pytest
from alexshard.trainer import PRESETS
from alexshard.trainer.plateau import plateau_message


def message(preset, step, loss, *, num_classes=1000, steps_per_epoch=9375):
    return plateau_message(
        PRESETS[preset](), num_classes=num_classes, steps_per_epoch=steps_per_epoch, step=step, loss=loss
    )


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
    assert "should have left it by now" in message("original", 1000, 2.30, num_classes=10, steps_per_epoch=15)
