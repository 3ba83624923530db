"""Boundaries are steps, and each preset's are those of fidelity.md §0."""

import dataclasses

import pytest
from alexshard.trainer import Recipe
from alexshard.trainer.schedule import Schedule

ORIGINAL = [  # step: conv1 weights, other weights, biases, conv1 biases, jitter; 10 steps an epoch
    (0, 0.01, 0.01, 0.02, 0.02, True),
    (229, 0.01, 0.01, 0.02, 0.02, True),
    (230, 0.001, 0.001, 0.002, 0.002, True),
    (510, 0.0001, 0.0001, 0.002, 0.002, True),
    (679, 0.0001, 0.0001, 0.002, 0.002, True),
    (680, 0.00001, 0.0001, 0.002, 0.002, False),
    (720, None, 0.0001, 0.002, None, False),
    (780, None, 0.00001, 0.002, None, False),
    (929, None, 0.00001, 0.002, None, False),
]


@pytest.mark.parametrize("row", ORIGINAL, ids=lambda row: str(row[0]))
def test_original_follows_its_table(row):
    step, *expected = row

    segment = Schedule.of(Recipe.original(), steps_per_epoch=10).at(step)

    assert [
        segment.conv1_weights,
        segment.weights,
        segment.biases,
        segment.conv1_biases,
        segment.jitter,
    ] == expected


def test_paper_drops_every_rate_by_ten_after_23_51_and_78_epochs():
    schedule = Schedule.of(Recipe.paper(), steps_per_epoch=9375)

    assert schedule.starts == (0, 23 * 9375, 51 * 9375, 78 * 9375)
    assert schedule.total_steps == 843_750
    assert [segment.weights for segment in schedule.segments] == [0.01, 0.001, 0.0001, 0.00001]
    assert all(s.weights == s.biases == s.conv1_weights == s.conv1_biases for s in schedule.segments)


def test_jitter_of_original_ends_after_68_epochs_and_that_of_paper_never():
    assert Schedule.of(Recipe.original(), 100).jitter_steps == 6800
    assert Schedule.of(Recipe.paper(), 100).jitter_steps is None


def test_a_run_of_one_epoch_has_every_boundary():
    recipe = dataclasses.replace(Recipe.original(), epochs=1)

    assert Schedule.of(recipe, steps_per_epoch=1000).starts == (0, 247, 548, 731, 774, 839)


def test_ending_early_changes_no_boundary():
    whole, cut = Recipe.original(), dataclasses.replace(Recipe.original(), max_steps=50)

    assert Schedule.of(cut, 10) == Schedule.of(whole, 10)
