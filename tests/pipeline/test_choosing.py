"""What a loader chooses where the caller leaves it open: decoder, threads, batches ahead; and its times."""

from __future__ import annotations

from itertools import islice

import numpy as np
import pytest
import torch
from alexshard.pipeline import EpochOrder, Loader, Window, choosing, machine
from alexshard.pipeline.wanted import Wanted


@pytest.mark.parametrize(
    ("card", "cores", "split", "fastest"),
    [(6000, 2000, 7900, "split"), (6000, 2000, 6100, "card"), (900, 2000, 2000, "cores"), (1, 1, 2, "split")],
)
def test_the_fastest_decoder_is_taken_and_a_split_only_where_it_gains(card, cores, split, fastest):
    assert choosing.fastest({"card": card, "cores": cores, "split": split}) == fastest


def test_both_sides_of_a_split_end_together():
    share = choosing.share_of_card(6000, 2000)

    assert share == 0.75
    assert 128 * share / 6000 == 128 * (1 - share) / 2000


@pytest.mark.parametrize(("asked", "allowed"), [(None, {"card", "cores", "split"}), ("split", {"split"})])
def test_trying_decoders_out_decides_on_one_and_costs_no_batch(jpeg_set, monkeypatch, asked, allowed):
    """As a card's loader does at its start; DALI decodes on the cores here."""
    tried = []
    monkeypatch.setattr(
        choosing, "images_per_s", lambda maker, *_: tried.append(maker.plan) or 1000.0 * (1 + (len(tried) == 1))
    )
    with Loader(jpeg_set.path, batch_size=9, backend="dali") as loader:
        plan, maker = choosing.with_decoder_measured(loader._plan, loader._deliveries.endless(0), asked)
        made = [delivery.batch() for delivery in loader._deliveries.of_epoch(maker, 0, 0)]
        expected = list(loader)
        maker.close()

    assert plan.decoder in allowed
    assert [each.decoder for each in tried] == ["card", "cores", "split"][: 2 if asked else 3]
    if asked == "split":
        assert plan.split_share == pytest.approx(2 / 3)
    for one, other in zip(made, expected, strict=True):
        assert one.keys == other.keys
        torch.testing.assert_close(one.images, other.images, atol=1e-3, rtol=0)


def test_a_rank_without_samples_has_nothing_to_measure_and_is_not_waited_for(raw_set):
    """5 samples for 8 ranks: the first rank's part of every epoch is empty."""
    with Loader(raw_set.path, "test", 1, rank=0, world_size=8, drop_last=False, backend="dali") as loader:
        assert next(loader._deliveries.endless(0), None) is None
        for asked in (None, "split"):
            plan, maker = choosing.with_decoder_measured(loader._plan, loader._deliveries.endless(0), asked)
            maker.close()
            assert plan is loader._plan
    with Loader(raw_set.path, "test", 1, rank=0, world_size=8, pad_last=True) as loader:
        assert len(next(loader._deliveries.endless(0)).samples) == 1


@pytest.mark.parametrize("backend", ["threads", "dali"])
def test_a_maker_is_measured_over_epochs_and_can_be_used_after(jpeg_set, backend):
    with Loader(jpeg_set.path, batch_size=9, backend=backend) as loader:
        assert choosing.images_per_s(loader._maker, loader._deliveries.endless(0), loader.device) > 0
        assert sum(len(batch) for batch in loader) == 72


def write(folder, **files):
    for name, text in files.items():
        path = folder / name.replace("__", "/").replace("_DOT_", ".")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


@pytest.mark.parametrize(
    ("files", "quota"),
    [
        ({}, None),
        ({"cpu_DOT_max": "max 100000\n"}, None),
        ({"cpu_DOT_max": "150000 100000\n"}, 1.5),
        ({"cpu__cpu_DOT_cfs_quota_us": "-1\n", "cpu__cpu_DOT_cfs_period_us": "100000\n"}, None),
        ({"cpu__cpu_DOT_cfs_quota_us": "400000\n", "cpu__cpu_DOT_cfs_period_us": "100000\n"}, 4.0),
        ({"cpu_DOT_max": "nonsense\n"}, None),
    ],
)
def test_the_quota_of_cores_is_read_from_the_control_group(tmp_path, files, quota):
    write(tmp_path, **files)

    assert machine.cpu_quota(tmp_path) == quota


@pytest.mark.parametrize(
    ("files", "free"),
    [
        ({}, 2048 * 1024),
        ({"memory_DOT_max": "max", "memory_DOT_current": "5"}, 2048 * 1024),
        ({"memory_DOT_max": "1000000", "memory_DOT_current": "400000"}, 600_000),
        ({"memory_DOT_max": "1000", "memory_DOT_current": "4000"}, 0),
        ({"memory__memory_DOT_limit_in_bytes": "900", "memory__memory_DOT_usage_in_bytes": "100"}, 800),
    ],
)
def test_free_memory_is_what_the_machine_and_the_control_group_have_left(tmp_path, files, free):
    write(tmp_path, meminfo="MemTotal: 4096 kB\nMemAvailable:    2048 kB\n", **files)

    assert machine.free_memory(tmp_path, tmp_path / "meminfo") == free


def test_where_nothing_tells_of_memory_nothing_is_known(tmp_path):
    assert machine.free_memory(tmp_path, tmp_path / "meminfo") is None


def test_ranks_of_one_machine_share_its_cores(monkeypatch):
    monkeypatch.setattr(machine, "usable_cores", lambda: 12)
    monkeypatch.setattr(machine, "cpu_quota", lambda: None)
    found = []
    for ranks in ("", "4", "5", "100", "no number"):
        monkeypatch.setenv("LOCAL_WORLD_SIZE", ranks)
        found.append(machine.default_threads())
    monkeypatch.delenv("LOCAL_WORLD_SIZE")
    monkeypatch.setattr(machine, "cpu_quota", lambda: 2.6)

    assert found == [12, 3, 2, 1, 12]
    assert machine.default_threads() == 3


@pytest.mark.parametrize("in_flight", [0, 2, 65])
def test_batches_ahead_are_as_many_as_memory_allows_beside_those_being_made(in_flight):
    """An eighth of what is free is for all of them: ahead, being made, waiting for room, with the consumer."""
    for batches, ahead in ((100, 4), (4, 4), (3, 3), (1, 1), (0, 1), (-1, 1)):
        free = 8 * (batches + in_flight + 2) * 77_000_000
        assert machine.default_prefetch(77_000_000, free, in_flight=in_flight) == ahead

    assert machine.default_prefetch(77_000_000, None, in_flight=in_flight) == 1


def test_what_was_chosen_is_told_and_can_be_asked_for(jpeg_set):
    with Loader(jpeg_set.path, batch_size=8) as loader:
        assert loader.threads == machine.default_threads()
        assert 1 <= loader.prefetch <= 4
    with Loader(jpeg_set.path, batch_size=8, threads=3, prefetch=7) as loader:
        assert (loader.threads, loader.prefetch) == (3, 7)


def test_images_delivered_and_seconds_are_counted(jpeg_set):
    with Loader(jpeg_set.path, batch_size=8) as loader:
        assert loader.times.images == 0
        for _ in islice(loader, 3):
            pass
        times = loader.times

    assert times.images == 24
    assert times.waited_s > 0
    assert times.made_s > 0
    assert times.store_s == 0


def told_by(windows, samples, shard_of, spans):
    told = []
    wanted = Wanted(EpochOrder(np.array(samples), windows), np.array(shard_of), lambda shards: told.append(shards))
    for span in spans:
        wanted.enter(*span)
    return told


TWO_EACH = [0, 0, 1, 1, 2, 2, 3, 3]


def test_entering_a_window_its_shards_and_the_next_ones_are_wanted_in_order_of_need():
    windows = (Window(0, 4, (3, 1)), Window(4, 6, (0,)), Window(6, 8, (2,)))
    samples = [2, 6, 7, 3, 1, 0, 4, 5]

    told = told_by(windows, samples, TWO_EACH, [(0, 2), (2, 4), (4, 6), (6, 8)])

    assert told == [[1, 3, 0], [0, 2], [2]]


def test_a_batch_across_a_border_wants_both_windows():
    windows = (Window(0, 4, (3, 1)), Window(4, 6, (0,)), Window(6, 8, (2,)))

    assert told_by(windows, [2, 6, 7, 3, 1, 0, 4, 5], TWO_EACH, [(3, 5)]) == [[1, 0, 2, 3]]


def test_an_epoch_resumed_in_the_middle_wants_nothing_of_what_is_past():
    windows = (Window(0, 4, (3, 1)), Window(4, 6, (0,)), Window(6, 8, (2,)))

    assert told_by(windows, [2, 6, 7, 3, 1, 0, 4, 5], TWO_EACH, [(6, 8)]) == [[2]]


def test_a_global_order_wants_all_shards_those_of_the_first_samples_first():
    samples = [7, 2, 0, 5, 1, 3, 4, 6]

    assert told_by((Window(0, 8, (0, 1, 2, 3)),), samples, TWO_EACH, [(0, 4), (4, 8)]) == [[3, 1, 0, 2]]
