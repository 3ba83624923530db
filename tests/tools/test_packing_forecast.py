"""The plan says what reading and decoding will cost, from images that are read."""

from __future__ import annotations

import subprocess
import threading
from itertools import pairwise

import pytest
from alexshard.shards import Split
from alexshard.tools import build_report
from alexshard.tools.packing import (
    BadSource,
    BuildPlan,
    BuildSettings,
    Forecast,
    MaxBad,
    forecast,
    plan_build,
    source_at,
)
from alexshard.tools.packing.forecast import PROBES, probed
from alexshard.tools.packing.reading import READERS, SourceReader
from alexshard.tools.packing.resume import names_of

from tests.conftest import alexshard, run
from tests.tools.drawn import SMALL, folders, ilsvrc, jpeg, named_images


def planned(source, tmp_path, samples_per_shard: int | None = None) -> BuildPlan:
    return plan_build(
        BuildSettings(
            source=source,
            out=tmp_path / "out",
            image=SMALL,
            max_bad=MaxBad.parse("100%"),
            samples_per_shard=samples_per_shard,
        )
    )


def cost_of(plan: BuildPlan) -> Forecast | None:
    return forecast(plan.listing.containers, plan.splits, plan.settings.image)


@pytest.mark.parametrize(("images", "probes"), [(1, 1), (31, 31), (1000, PROBES)])
def test_probes_lie_evenly_over_a_shard_in_the_order_of_reading(images, probes):
    chosen = probed(list(range(images)))

    steps = {later - earlier for earlier, later in pairwise(chosen)}
    assert (len(chosen), chosen) == (probes, sorted(set(chosen)))
    assert all(images // probes <= step <= images // probes + 1 for step in steps)


def test_the_forecast_counts_all_images_and_their_bytes_and_reads_a_few(tmp_path, monkeypatch):
    plan = planned(ilsvrc(tmp_path / "source", named_images(60)), tmp_path)
    read, forgotten = [], []
    monkeypatch.setattr(SourceReader, "read", counting(SourceReader.read, read))
    monkeypatch.setattr(SourceReader, "forget", counting(SourceReader.forget, forgotten))

    cost = cost_of(plan)

    assert (cost.images, cost.bytes) == (184, sum(sum(images.size) for images in plan.listing.splits.values()))
    assert (cost.probed, len(forgotten), read) == (PROBES, PROBES, [forgotten[0], *forgotten])
    assert cost.read_s > 0 < cost.pack_s


def counting(method, called):
    def call(self, sample):
        called.append(sample.name)
        return method(self, sample)

    return call


def test_bad_images_are_left_out_and_a_source_of_nothing_else_has_no_forecast(tmp_path):
    some = folders(tmp_path / "some", {"cat": {f"{i}.jpg": jpeg(i) if i % 2 else b"none" for i in range(10)}})
    none = folders(tmp_path / "none", {"cat": {f"{i}.jpg": b"none" for i in range(10)}})

    assert cost_of(planned(some, tmp_path)).probed == 5
    assert cost_of(planned(none, tmp_path)) is None


def test_images_are_probed_as_they_are_read_many_at_a_time(tmp_path, monkeypatch):
    source = folders(tmp_path / "source", {"cat": {f"{i}.jpg": jpeg(i) for i in range(2 * READERS)}})
    plan = planned(source, tmp_path)
    together, read_one, first = threading.Barrier(READERS), SourceReader.read, []

    def read(self, sample):
        if first:  # the very first one is read alone
            together.wait(10)
        first.append(sample)
        return read_one(self, sample)

    monkeypatch.setattr(SourceReader, "read", read)

    assert cost_of(plan).probed == 2 * READERS


def test_shards_that_are_finished_cost_nothing(tmp_path):
    plan = planned(folders(tmp_path / "source", {"cat": {f"{i}.jpg": jpeg(i) for i in range(10)}}), tmp_path, 4)
    every = list(names_of(plan.splits))
    sizes = [[sample.size for sample in plan.splits[Split.TRAIN].shard(n).samples] for n in range(3)]

    def left(*finished: int) -> tuple[int, int] | None:
        done = [every[number] for number in finished]
        cost = forecast(plan.listing.containers, plan.splits, SMALL, finished=done)
        return (cost.images, cost.bytes) if cost else None

    assert left() == (10, sum(map(sum, sizes)))
    assert left(0, 1) == (2, sum(sizes[2]))
    assert left(0, 1, 2) is None


def test_workers_wait_for_one_disk_and_not_for_each_others_answers_of_a_store(tmp_path):
    source = folders(tmp_path / "source", {"cat": {f"{i}.jpg": jpeg(i) for i in range(10)}})
    readers = []
    for place in (source, source_at(f"file://{source}")):
        plan = planned(place, tmp_path)
        readers.append(forecast(plan.listing.containers, plan.splits, SMALL, workers=3).readers)

    assert readers == [1, 3]
    assert Forecast(600, 0, 32, read_s=0.1, pack_s=1, readers=3).reading_s == pytest.approx(20)


def test_a_build_that_was_stopped_is_told_what_is_left_of_it(tmp_path):
    source = folders(tmp_path / "source", {"cat": {f"{i}.jpg": jpeg(i) for i in range(8)} | {"bad.jpg": b""}})
    command = alexshard("build", source, "--out", tmp_path / "out", "--size", 32, "-j", 1)
    command += ["--samples-per-shard", "3", "--max-bad", "0"]
    subprocess.run(command, capture_output=True, check=False)
    finished = len(list((tmp_path / "out" / ".build").glob("*.json"))) - 1  # one is plan.json

    assert finished > 0

    again, anew = run(*command, "--dry-run"), run(*command, "--dry-run", "--restart")

    assert f"{9 - 3 * finished} images, " in again
    assert "9 images, " in anew


def test_a_source_that_has_changed_since_it_was_listed_is_told_before_the_work_starts(tmp_path):
    source = folders(tmp_path / "source", {"cat": {f"{i}.jpg": jpeg(i) for i in range(10)}})
    plan = planned(source, tmp_path)
    (source / "cat" / "5.jpg").unlink()

    with pytest.raises(BadSource, match="No such file"):
        cost_of(plan)


@pytest.mark.parametrize(
    ("read_s", "expected"),
    [
        (
            0.0004,
            "1,261,406 images, 137.6 GB; 32 probed at 0.4 ms each: about 8 min 25 s, packing about 42 min 3 s "
            "with 2 workers at the same time",
        ),
        (
            0.0096,
            "1,261,406 images, 137.6 GB; 32 probed at 9.6 ms each: about 3 h 21 min, packing about 42 min 3 s "
            "with 2 workers at the same time; the source is what costs: a copy of it on a faster disk may pay",
        ),
    ],
)
def test_the_cost_is_told_in_words(read_s, expected):
    cost = Forecast(images=1_261_406, bytes=137_560_546_646, probed=32, read_s=read_s, pack_s=0.004)

    assert build_report.reading_text(cost, workers=2) == expected


def test_a_dry_run_prints_what_reading_will_cost(tmp_path):
    source = ilsvrc(tmp_path / "source", named_images())

    printed = run(*alexshard("build", source, "--out", tmp_path / "out", "--dry-run"))

    assert "16 images" in printed
    assert "probed at" in printed
    assert Split.TRAIN in printed
