"""tools/bench_loader: its verdicts, on made-up figures of every case."""

from __future__ import annotations

import pytest
from alexshard.tools.loader_figures import Run, added, figures, own_us_per_image
from alexshard.tools.loader_verdict import judge

from tests.tools.bench_reports import RATES, findings, together

CARD = {"device": "cuda:0", "backend": "dali", "decoder": "card"}


def run(images, seconds, **other):
    about = {"user_s": 1.0, "system_s": 0.5, "rss_bytes": 100, "own_bytes": 60}
    return Run(images, seconds, **{**about, **other})


def test_a_stages_own_cost_is_what_it_adds():
    own = own_us_per_image(RATES)

    assert list(own) == list(RATES)
    assert own == pytest.approx(
        {"bytes": 10, "decode": 115, "crop": 8.33, "finish": 116.67, "device": 3.16, "loader": 3.25}, abs=0.01
    )


def test_a_stage_costs_no_more_than_one_that_contains_it():
    own = own_us_per_image({"bytes": 50_000.0, "decode": 1_000_000.0, "crop": 64_000.0, "loader": 80_000.0})

    assert own == pytest.approx({"bytes": 1, "decode": 0, "crop": 11.5, "loader": 0})


def test_ranks_add_up_in_rate_cores_and_memory():
    both = added([run(100, 1.0, store_s=0.5), run(60, 2.0, user_s=3.0, waited_s=1.0)])
    about = figures([both])

    assert about["images_per_s"]["median"] == pytest.approx(100 + 30)
    assert about["user_cores"] == pytest.approx(1.0 + 1.5)
    assert about["system_cores"] == pytest.approx(0.5 + 0.25)
    assert about["store_share"] == pytest.approx(0.25)
    assert both.waited_s / both.seconds == pytest.approx(0.25)
    assert (about["rss_bytes"], about["own_bytes"]) == (200, 120)


def test_a_loader_that_outruns_the_trainer_tells_how_few_threads_are_enough():
    verdict = judge(findings(demand=31.0, together=together()))

    assert (verdict.bottleneck, verdict.factor) == ("trainer", pytest.approx(125.8, abs=0.1))
    assert verdict.turn == ("--threads 1",)
    assert verdict.text == (
        "The trainer is the limit: it asks for 31.0 images/s, 2 threads give 3,900 images/s, 126 times as many; "
        "--threads 1 should be enough."
    )


def test_the_fewest_threads_that_are_enough_keep_half_as_much_in_hand():
    verdict = judge(findings(demand=2_000.0, together=together(), threads=8, cores=8))

    assert verdict.turn == ("--threads 7",)


def test_threads_beyond_the_cores_are_not_counted_on():
    verdict = judge(findings(demand=1_500.0, together=together(images_per_s=1_500.0), threads=8))

    assert "--threads 2 should be enough" in verdict.text


def test_nothing_is_said_of_threads_where_a_card_works_too():
    verdict = judge(findings(demand=31.0, together=together(), **CARD))

    assert verdict.turn == ()
    assert verdict.text.endswith("126 times as many.")


def test_a_loader_just_fast_enough_has_no_thread_to_spare():
    assert "no thread can be spared." in judge(findings(demand=3_000.0, together=together())).text


def test_rates_that_are_nearly_equal_make_neither_the_limit():
    verdict = judge(findings(demand=3_950.0, together=together(waited_share=0.2)))

    assert verdict.bottleneck == "none"
    assert verdict.text.startswith(
        "Neither is the limit: 2 threads give 3,900 images/s, the trainer asks for 3,950"
    )


@pytest.mark.parametrize(
    ("rates", "about", "stage", "turn"),
    [
        ({}, {}, "finish", "more cores, or --mean channel, or --output uint8, for a trainer that normalises."),
        ({}, {"mean": "channel"}, "finish", "more cores, or --output uint8, for a trainer that normalises."),
        ({}, {"output": "uint8"}, "finish", "more cores."),
        ({}, {"backend": "dali", "output": "uint8"}, "finish", "--backend threads, or more cores."),
        ({}, {**CARD, "mean": "channel", "output": "uint8"}, "finish", "a faster card."),
        ({"finish": 7_000.0}, {}, "decode", "more cores, or alexshard build --format raw."),
        ({"finish": 7_000.0}, {"cores": 16}, "decode", "--threads 16 (now 2), or alexshard build --format raw."),
        ({"finish": 7_000.0}, {"cores": 16, "ranks": 4}, "decode", "--threads 4 (now 2), or alexshard build"),
        (
            {"finish": 7_000.0},
            CARD,
            "decode",
            "--decoder split, or a faster card, or alexshard build --format raw.",
        ),
        (
            {"finish": 7_000.0},
            {**CARD, "decoder": "cores"},
            "decode",
            "more cores, or --decoder split, or alexshard build --format raw.",
        ),
        ({"crop": 3_990.0, "finish": 3_980.0}, {}, "crop", "more cores."),
        ({"finish": 7_500.0, "device": 3_950.0}, {}, "device", "--mean channel, or --output uint8, for"),
        (
            {"finish": 7_500.0, "device": 7_400.0},
            {},
            "loader",
            "--prefetch 4 (now 2), or a larger --batch-size.",
        ),
        ({"bytes": 4_500.0, "decode": 4_400.0}, {}, "bytes", "more cores."),
        ({}, {"remote": True, "store_share": 0.7}, "finish", "more cores"),
        (
            {"bytes": 4_500.0, "decode": 4_400.0},
            {"busy": {"bytes": 0.1, "decode": 2.0, "loader": 2.0}},
            "bytes",
            "Turn: memory that holds the shards, or a faster disk, or --order windowed.",
        ),
        (
            {"bytes": 4_500.0, "decode": 4_400.0},
            {"busy": {"bytes": 0.1, "decode": 0.5, "loader": 0.5}},
            "bytes",
            "Turn: a quiet machine: threads that decode did not get their cores either, or memory that holds",
        ),
        ({"finish": 7_500.0, "device": 7_400.0}, {"prefetch": 3, "room": 4}, "loader", "--prefetch 4 (now 3)"),
        ({"finish": 7_500.0, "device": 7_400.0}, {"prefetch": 3, "room": 3}, "loader", "Turn: a larger --batch"),
        (
            {},
            {"remote": True, "store_share": 0.7, "busy": {"loader": 0.4}},
            "store",
            "--order windowed, which reads ahead, or a faster link, or a --cache that holds the set.",
        ),
    ],
)
def test_a_loader_too_slow_is_told_by_its_costliest_stage(rates, about, stage, turn):
    if rates.get("finish") == 7_000.0:
        rates = {"device": 6_900.0, "loader": 6_800.0, **rates}
    found = findings(demand=20_000.0, together=together(waited_share=0.8), rates=rates, **about)
    verdict = judge(found)

    assert verdict.bottleneck == stage
    assert verdict.factor == pytest.approx(20_000 / found.given)
    assert " is the limit: " in verdict.text
    assert "the trainer asks for 20,000" in verdict.text
    assert "it waited 80% of its time" in verdict.text
    assert turn in verdict.text


def test_nothing_is_said_of_training_where_the_demand_was_not_measured():
    verdict = judge(findings())

    assert (verdict.bottleneck, verdict.factor) == ("finish", None)
    assert "costs most of the loader's time" in verdict.text
    assert (verdict.turn, "Turn" in verdict.text) == ((), False)
    assert verdict.text.endswith("Whether training waits is not said: the trainer's demand was not measured.")
    assert "limit" not in verdict.text
    assert "asks for" not in verdict.text


def test_a_loader_that_is_fast_alone_and_not_beside_the_trainer_is_in_its_way():
    verdict = judge(findings(demand=1_000.0, together=together(images_per_s=700.0, waited_share=0.25)))

    assert verdict.bottleneck == "cores"
    assert "together it does 700 and waits 25% of its time" in verdict.text
    assert "Turn: more cores, or --mean channel" in verdict.text


def test_a_trainer_that_gets_what_it_asks_for_is_in_nobodys_way_however_long_it_waited():
    """As where a card computes while its process waits."""
    verdict = judge(findings(demand=1_000.0, together=together(images_per_s=990.0, waited_share=0.4)))

    assert verdict.bottleneck == "trainer"


def test_a_step_slowed_by_shared_cores_is_told_from_one_slowed_by_the_lock():
    by_cores = judge(findings(demand=1_000.0, together=together(beside_s=4.8, burnt_s=4.7)))
    by_lock = judge(findings(demand=1_000.0, together=together(beside_s=4.8, burnt_s=4.05)))
    unknown = judge(findings(demand=1_000.0, together=together(beside_s=4.8, burnt_s=None)))

    assert (by_cores.bottleneck, by_lock.bottleneck, unknown.bottleneck) == ("cores", "lock", "cores")
    assert "a step takes 20% longer, as beside any work that takes these cores (18%)" in by_cores.text
    assert "1% of it by sharing cores, the rest by memory or Python's lock" in by_lock.text
    assert "which was not measured" in unknown.text


def test_a_slower_step_within_the_spread_of_steps_alone_is_not_spoken_of():
    assert "longer" not in judge(findings(demand=31.0, together=together(beside_s=4.4, spread=0.12))).text


def test_ranks_are_named_with_their_threads():
    assert "4 ranks of 2 threads give 3,900" in judge(findings(demand=31.0, ranks=4, cores=8)).text


def test_a_verdict_from_a_busy_machine_says_so_in_its_line():
    busy = {"decode": 0.5, "loader": 1.0}
    said = judge(findings(demand=31.0, together=together(), busy=busy)).text

    assert said.startswith("Measured while threads that decode did not get their cores (a busy machine)")
    assert "The trainer is the limit" in said
    assert "busy machine" not in judge(findings(demand=31.0, together=together())).text
