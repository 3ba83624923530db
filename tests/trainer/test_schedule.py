"""Boundaries are steps, and each preset's are those of fidelity.md §0."""

import dataclasses

import pytest
from alexshard.shards import WrongCall
from alexshard.trainer import PRESETS, SCHEDULES, Plateau, Recipe, Schedule

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

    rates = [segment.rates[group] for group in ("conv1.weight", "weights", "biases", "conv1.bias")]
    assert [*rates, segment.jitter] == expected


def test_paper_drops_every_rate_by_ten_after_23_51_and_78_epochs():
    schedule = Schedule.of(Recipe.paper(), steps_per_epoch=9375)

    assert schedule.starts == (0, 23 * 9375, 51 * 9375, 78 * 9375)
    assert schedule.total_steps == 843_750
    assert [segment.rates["weights"] for segment in schedule.segments] == [0.01, 0.001, 0.0001, 0.00001]
    assert all(s.rates == {"weights": s.rates["weights"], "biases": s.rates["weights"]} for s in schedule.segments)


def test_jitter_of_original_ends_after_68_epochs_and_that_of_paper_never():
    assert Schedule.of(Recipe.original(), 100).jitter_steps == 6800
    assert Schedule.of(Recipe.paper(), 100).jitter_steps is None


def test_a_run_of_one_epoch_has_every_boundary():
    recipe = dataclasses.replace(Recipe.original(), epochs=1)

    assert Schedule.of(recipe, steps_per_epoch=1000).starts == (0, 247, 548, 731, 774, 839)


def test_ending_early_changes_no_boundary():
    whole, cut = Recipe.original(), dataclasses.replace(Recipe.original(), max_steps=50)

    assert Schedule.of(cut, 10) == Schedule.of(whole, 10)


# §0: run, first drop, second, conv1 slowed and jitter off, conv1 (and conv2: +) frozen, last drop, stop
TABLE = """
120       26 47 66 72+ 82 106
120-2012  22 49 66 73+ 81 95
131       22 46 66 75+ 81 100
135       20 47 66 75+ 81 96
137       25 49 81 85+ 85 103
145       25 51 67 72 79 91
145-2010  23 51 68 72 78 93
147       23 51 -  79 79 90
148       22 44 69 73 86 97
150       25 49 66 72 79 92
"""
LOW_BIASES = {"145-2010", "131", "135", "137", "147"}  # whose last bias rate in the release is 0.002


@pytest.mark.parametrize("row", TABLE.split("\n")[1:-1], ids=lambda row: row.split()[0])
def test_the_runs_of_2012_follow_the_table(row):
    name, first, second, slowed, frozen, last, stop = row.split()
    layers = ["conv1", "conv2"] if frozen.endswith("+") else ["conv1"]
    first, second, frozen, last, stop = (int(word.strip("+")) for word in (first, second, frozen, last, stop))
    recipe = Recipe.original().with_schedule(name)
    schedule = Schedule.of(recipe, 10)

    def rate(group, epoch):
        return schedule.at(round(epoch * 10)).rates[group]

    assert (recipe.epochs, recipe.schedule_epochs) == (stop, stop)
    for epoch, before, after in ((first, 0.01, 0.001), (second, 0.001, 0.0001), (last, 0.0001, 0.00001)):
        assert (rate("weights", epoch - 0.1), rate("weights", epoch)) == (before, after)
    for layer in layers:
        assert rate(f"{layer}.weight", frozen - 0.1) == (0.0001 if slowed == "-" else 0.00001)
        assert rate(f"{layer}.weight", frozen) is rate(f"{layer}.bias", frozen) is None
        if slowed != "-":
            assert rate(f"{layer}.weight", int(slowed)) == 0.00001
    assert recipe.jitter_epochs == (None if slowed == "-" else int(slowed))
    assert rate("biases", 0) == 0.02
    assert rate("biases", stop - 1) == (0.002 if name in LOW_BIASES else 0.02)
    assert {group for segment in schedule.segments for group in segment.rates} == {
        *("weights", "biases"),
        *(f"{layer}.{kind}" for layer in layers for kind in ("weight", "bias")),
    }


def test_dexp_goes_in_four_geometric_steps_from_the_first_rate_to_a_250th():
    schedule = Schedule.of(Recipe.dexp(), 100)

    rates = [schedule.at(step).rates["weights"] for step in (0, 2249, 2250, 4500, 6750, 8999)]
    assert rates == pytest.approx([0.01, 0.01, 0.0015874011, 0.00025198421, 0.00004, 0.00004], rel=1e-6)
    assert [schedule.at(step).rates["biases"] for step in (0, 4499, 4500, 8999)] == [0.02, 0.02, 0.002, 0.002]
    assert (schedule.jitter_steps, schedule.at(7399).rates["conv1.weight"]) == (6800, rates[-1])
    assert schedule.at(7400).rates["conv1.weight"] is None


def test_fine_tuning_has_a_slower_first_and_a_faster_last_layer():
    schedule = Schedule.of(Recipe.cnn_star(), 10_010)

    def rates(step):
        return [schedule.at(step).rates[group] for group in ("conv1.weight", "weights", "fc8.weight")]

    assert rates(299) == [0.0001, 0.001, 0.001]
    assert rates(300) == [0.0001, 0.001, 0.01]
    assert rates(9 * 10_010) == [None, 0.001, 0.001]
    assert rates(53 * 10_010) == [None, 0.00001, 0.00001]


@pytest.mark.parametrize("name", SCHEDULES)
def test_every_schedule_by_name_goes_into_every_preset_and_survives_json(name):
    for preset in PRESETS:
        recipe = PRESETS[preset]().with_schedule(name)
        assert Recipe.from_json(recipe.to_json()) == recipe


def walked(errors, recipe, start=None):
    """What is known after an epoch with each of these validation errors; ten steps an epoch."""
    plateau, seen = start or Plateau(), []
    for epoch, error in enumerate(errors, start=1):
        plateau = plateau.after(10 * epoch, error, recipe=recipe, steps_per_epoch=10)
        seen.append(plateau)
    return seen


PLATEAU = Recipe.paper().with_schedule("plateau")


def test_rates_drop_when_the_best_error_is_more_than_five_epochs_old():
    seen = walked([0.9, 0.8] + [0.85] * 6 + [0.7], PLATEAU)

    assert [plateau.drops for plateau in seen] == [()] * 7 + [(80,)] * 2
    assert (seen[-1].best_error, seen[-1].best_step) == (0.7, 90)
    schedule = Schedule.of(PLATEAU, 10, seen[-1].drops)
    assert [schedule.at(step).rates["weights"] for step in (0, 79, 80, 899)] == [0.01, 0.01, 0.001, 0.001]


def test_after_the_third_drop_and_five_more_epochs_the_run_stops():
    seen = walked([0.5] * 40, PLATEAU)

    assert seen[-1].drops == (70, 130, 190)
    stopped = next(epoch for epoch, plateau in enumerate(seen, start=1) if plateau.stopped)
    assert stopped == 19 + 5


def test_an_equal_error_is_no_better_and_a_better_one_after_a_drop_begins_the_count_anew():
    equal = walked([0.5] * 7, PLATEAU)
    better = walked([0.5] * 10 + [0.4] + [0.45] * 6, PLATEAU)

    assert equal[-1].drops == (70,)
    assert [plateau.drops for plateau in better[-3:]] == [(70,), (70,), (70, 170)]


def test_drops_by_validation_know_no_epoch_at_which_jitter_could_end():
    with pytest.raises(WrongCall, match="jitter epochs is 60"):
        dataclasses.replace(PLATEAU, jitter_epochs=60)
    with pytest.raises(WrongCall, match=r"weight rates is \[0.0, 23.0\], and must be at the moments 0, 1, 2"):
        dataclasses.replace(PLATEAU, weight_rates=((0, 0.01), (23, 0.001)))
