"""tools/bench_loader --sweep: what is tried, and what is refused before anything runs."""

from __future__ import annotations

import pytest
from alexshard.pipeline import ORDERS
from alexshard.shards import WrongCall
from alexshard.tools.loader_sweep import parse_sweep, places_of_sets


def swept(*texts, cores=4, batch_size=128, samples=4000, formats=("jpeg",)):
    found = parse_sweep(texts, cores=cores, batch_size=batch_size, samples=samples, formats=formats)
    return [(each.knob, each.value) for each in found]


def test_values_may_be_given_or_left_out_in_any_mix():
    assert swept("threads=1,3,prefetch,order=global,stored") == [
        ("threads", 1),
        ("threads", 3),
        *(("prefetch", depth) for depth in (1, 2, 4, 8)),
        ("order", "global"),
        ("order", "stored"),
    ]
    assert swept("threads=1", "order") == [("threads", 1), *(("order", name) for name in ORDERS)]


def test_values_left_out_follow_the_machine_and_the_split():
    assert swept("threads", cores=6) == [("threads", n) for n in (1, 2, 4, 6)]
    assert swept("batch-size") == [("batch-size", n) for n in (32, 64, 128, 256)]
    assert swept("batch-size", samples=100) == [("batch-size", n) for n in (32, 64, 100)]
    assert swept("batch-size", samples=20) == [("batch-size", 20)]
    assert swept("format", formats=("jpeg", "raw")) == [("format", "jpeg"), ("format", "raw")]


def test_a_value_given_twice_is_tried_once():
    assert swept("threads=2, 2") == [("threads", 2)]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("thread=1", "--sweep thread: no such knob"),
        ("colour", "'colour' is no knob"),
        ("threads,1", "'1' is no knob"),
        ("", "'' is no knob"),
        ("threads=1,threads=2", "names threads twice"),
        ("threads=0", "threads=0: not a number from 1 to 1,024"),
        ("threads=two", "threads=two: not a number"),
        ("threads=", "threads=: not a number"),
        ("threads=²", "threads=²: not a number"),
        ("batch-size=5000", "the split has 4,000 samples"),
        ("order=random", "order=random: no such order"),
        ("format=png", "format=png: no such format"),
        ("format=raw", "no set of that format is given, and nothing is packed here"),
        ("format", "needs sets of both formats; given: jpeg"),
    ],
)
def test_what_cannot_be_swept_is_refused_in_words(text, said):
    with pytest.raises(WrongCall) as caught:
        swept(text)

    assert said in caught.value.what
    assert caught.value.remedy


def test_a_folder_of_sets_stands_for_all_of_them_where_several_are_wanted(tmp_path):
    for name in ("raw", "jpeg"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "manifest.json").write_text("{}")
    both = [str(tmp_path / "jpeg"), str(tmp_path / "raw")]

    assert places_of_sets([str(tmp_path)], several=True) == both
    assert places_of_sets([str(tmp_path)], several=False) == [str(tmp_path)]
    assert places_of_sets([both[1]], several=True) == [both[1]]
