"""tools/bench_loader: tables, picture and page, on made-up figures."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from html.parser import HTMLParser
from itertools import pairwise

import pytest
from alexshard.tools.loader_chart import Bar, picture, picture_file
from alexshard.tools.loader_page import page, picture_of
from alexshard.tools.loader_report import pictures_of, to_text

from tests.tools.bench_reports import RATES, figures, report, stages, training

SVG = "{http://www.w3.org/2000/svg}"
PEERS = [
    {"name": "alexshard, the same work", "version": "", "about": "", "lacks": ""} | figures(3_900.0),
    {"name": "webdataset", "version": "1.0", "about": "", "lacks": "no jitter"} | figures(390.0),
]


def swept(knob, values):
    return [{"knob": knob, "value": value, "decoder": "cores", "stages": stages()} for value in values]


def everything():
    return report(
        training=training(31.0, waited=0.12),
        sweep=[*swept("threads", (1, 2)), *swept("order", ("global", "stored"))],
        peers=PEERS,
        peers_left_out={"ffcv": "not installed: ffcv"},
        ranks=[
            {
                "rank": rank,
                "images_per_s": figures(1_950.0)["images_per_s"],
                "share": 0.5,
                "cores": 1.0,
                "rss_bytes": 1,
            }
            for rank in (0, 1)
        ],
    )


def texts_of(svg):
    return ["".join(each.itertext()) for each in svg.iter() if each.tag.endswith("text")]


def parts_of(svg):
    return [each for each in svg.iter() if each.tag.endswith("rect") and each.findtext("{*}title")]


def test_the_text_says_what_was_not_measured_and_ends_with_the_verdict():
    text = to_text(report())

    assert "The trainer's demand: not measured (--no-demand)." in text
    assert text.splitlines()[-1] == "A made-up verdict."
    assert "Sweep" not in text


def test_the_text_has_every_table():
    text = to_text(everything())

    for said in (
        "The loader by stage",
        "3,900 [3,510..4,290]",
        "1.75 + 0.12",
        "batches from memory, handed over",
        "The trainer, width 1",
        "31.0 [27.9..34.1]",
        "12.0%",
        "gradients are not exchanged",
        "webdataset 1.0",
        "no jitter",
        "Not run: ffcv: not installed: ffcv.",
        "Sweep of threads",
        "Sweep of order",
        "rank 1",
        "2 ranks at the same time",
    ):
        assert said in text


def test_a_store_that_let_the_loader_wait_is_spoken_of():
    slow = report(store={"shards": 12, "bytes": 3_000_000_000, "stalled_s": 7.25})
    slow["stages"][-1]["store_share"] = 0.254

    assert "12 shards came from the store, 3.0 GB; somebody waited for them 7.2 s in all, and 25.4%" in to_text(
        slow
    )
    assert "store" not in to_text(report())


def test_a_machine_with_other_work_is_spoken_of_since_its_figures_are_low():
    busy = report()
    busy["stages"][1]["user_cores"] = 0.3

    assert "threads that only decode got 0.4 of 2 cores" in to_text(busy)
    assert "busy machine" not in to_text(report())


def test_threads_that_wait_for_a_disk_or_a_store_are_not_called_a_busy_machine():
    slow = report(stages=stages({**RATES, "bytes": 4_500.0, "decode": 4_400.0}))
    slow["stages"][1]["user_cores"] = 0.3
    far = {**slow, "store": {"shards": 12, "bytes": 3_000_000_000, "stalled_s": 7.25}}

    assert "A slow disk, or a busy machine: threads that only decode got 0.4 of 2 cores" in to_text(slow)
    assert "busy machine" not in to_text(far)


def test_parts_of_a_bar_lie_side_by_side_and_add_up_to_its_whole():
    (bars,) = pictures_of(report()).values()
    svg = ET.fromstring(picture(bars, None, "a picture"))
    parts = parts_of(svg)
    places = [(float(part.get("x").rstrip("%")), float(part.get("width").rstrip("%"))) for part in parts]

    assert bars[0].total_us == pytest.approx(1e6 / RATES["loader"])
    assert len(parts) == len(RATES)
    assert places[0][0] == 0
    for (x, width), (following, _) in pairwise(places):
        assert x + width == pytest.approx(following, abs=0.01)
    assert places[-1][0] + places[-1][1] == pytest.approx(96, abs=0.01)


def test_the_demand_is_a_line_also_where_it_is_far_off_behind_a_break_of_the_axis():
    bars = [Bar("a", {"decode": 100.0})]
    near = ET.fromstring(picture(bars, 5_000.0, "near"))
    far = ET.fromstring(picture(bars, 31.0, "far"))
    (bar,) = parts_of(far)

    for drawn in (near, far):
        assert [each.get("x1") for each in drawn.iter() if each.get("class") == "demand"] == ["96.000%"]
    assert "the trainer asks for 5,000 images/s, 200 µs" in texts_of(near)
    assert "the trainer asks for 31.0 images/s, 32,258 µs" in texts_of(far)
    assert bar.get("width") == "72.000%"
    assert ("//" in texts_of(far), "//" in texts_of(near)) == (True, False)


def test_a_bars_rate_stands_with_its_time_so_that_the_verdict_is_found_again():
    assert "10,000 images/s, 100 µs" in texts_of(ET.fromstring(picture([Bar("a", {"decode": 100.0})], None, "")))


def test_a_cost_within_the_spread_of_its_runs_is_no_fact():
    """Of the made-up stages, device adds 3 µs and its runs differ by 51; decode adds 115 and differs by 25."""
    made = report(sweep=swept("threads", (1,)))
    drawn = ET.fromstring(picture_of(made, "today"))
    titles = [part.findtext("{*}title") for part in parts_of(drawn)]

    for told in (to_text(made), page(made, "today")):
        assert "≤ 51" in told
        assert "≤: the stage costs less than its runs differ by." in told
    assert "to the device: ≤ 51 µs an image" in titles
    assert "decode: 115.0 µs an image" in titles
    assert all(("noise" in part.get("class")) == ("≤" in part.findtext("{*}title")) for part in parts_of(drawn))


def test_a_sweep_says_that_its_rows_have_turns_of_their_own():
    assert "its rows compare with each other, not with theirs" in to_text(everything())


def test_on_a_narrow_page_a_row_is_a_list_of_named_figures():
    content = page(everything(), "today")

    assert content.count('data-name="own µs/image"') == len(RATES) + 1
    assert "content: attr(data-name)" in content


def test_the_header_names_the_set_and_no_path():
    root = ET.fromstring(page(report(shard_set="/far/away/made-up"), "today").removeprefix("<!DOCTYPE html>\n"))

    assert "".join(root.find(".//header").itertext()).startswith("Where the loader's time goesmade-up, today")


def test_a_sweep_and_others_have_bars_under_their_headings():
    texts = texts_of(ET.fromstring(picture_of(everything(), "today")))

    for heading in ("Sweep of threads", "Sweep of order", "Others on the same images"):
        assert texts.count(heading) == 1
    assert texts.count("webdataset 1.0") == 1
    assert texts.count("alexshard, the same work") == 1


def test_the_picture_file_stands_alone():
    svg = ET.fromstring(picture_of(report(), "today"))

    assert svg.tag == SVG + "svg"
    assert "Where the time of an image goes" in texts_of(svg)
    assert "prefers-color-scheme: dark" in svg.findtext(f"{SVG}style")


def test_the_page_is_well_formed_and_asks_nobody_for_anything():
    content = page(everything(), "today")
    root = ET.fromstring(content.removeprefix("<!DOCTYPE html>\n"))
    outside = [
        value
        for each in root.iter()
        for name, value in each.attrib.items()
        if name in ("src", "href", "xlink:href") or "url(" in value
    ]

    HTMLParser().feed(content)
    assert outside == []
    assert "default-src &#x27;none&#x27;" in content
    assert [each.text for each in root.iter("h2")] == [
        "Where the time of an image goes",
        "Others on the same images",
        "The loader by stage",
        "The trainer, width 1",
        "Others on the same images, in the same turns",
        "Sweep of threads",
        "Sweep of order",
        "Each rank's part, as its trainer gets it",
        "Measured on",
    ]


def test_nothing_written_into_a_report_is_markup():
    hostile = report(shard_set="<script>alert(1)</script>")
    hostile["verdict"]["text"] = "</p><b>"

    assert "<script>" not in page(hostile, "<i>today</i>")
    assert "<b>" not in page(hostile, "<i>today</i>")


def test_a_picture_file_escapes_its_words():
    assert "<b>" not in picture_file({"<b>": [Bar("<b>", {"decode": 1.0})]}, None, ["<b>"])
