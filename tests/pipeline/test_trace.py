"""pipeline/trace.py: what is recorded, and that the file has the structure which viewers need."""

from __future__ import annotations

import json
import threading

import pytest
from alexshard.pipeline import trace as module
from alexshard.pipeline.trace import Trace, span, write_trace
from alexshard.shards import WrongCall


def spans_of(events):
    return [event for event in events if event["ph"] == "X"]


def names_of(events, what="thread_name"):
    return {event["tid"]: event["args"]["name"] for event in events if event["name"] == what}


def test_a_span_costs_nothing_while_nobody_records():
    assert span("decode", images=3) is span("order")


def test_the_file_holds_every_span_with_its_thread(tmp_path):
    path = tmp_path / "t.json"

    def work():
        with span("decode", images=7):
            pass

    with Trace(path, process="a loader"):
        with span("batch"), span("finish"):
            pass
        threads = [threading.Thread(target=work, name=f"worker-{i}") for i in range(2)]
        for thread in threads:
            thread.start()
            thread.join()
    content = json.loads(path.read_text())
    events = content["traceEvents"]
    names = names_of(events)

    assert names_of(events, "process_name") == {0: "a loader"}
    assert sorted(names.values()) == ["MainThread", "worker-0", "worker-1"]
    assert [(e["name"], names[e["tid"]]) for e in spans_of(events)] == [
        ("batch", "MainThread"),
        ("finish", "MainThread"),
        ("decode", "worker-0"),
        ("decode", "worker-1"),
    ]
    assert [e.get("args") for e in spans_of(events)] == [None, None, {"images": 7}, {"images": 7}]
    assert list(tmp_path.iterdir()) == [path]


def test_a_later_thread_never_takes_the_name_of_one_that_ended(tmp_path):
    with Trace(None) as trace:
        for i in range(5):  # the system gives their ids again and again
            thread = threading.Thread(target=_one_span, name=f"t{i}")
            thread.start()
            thread.join()
    names = names_of(trace.events())

    assert [names[e["tid"]] for e in spans_of(trace.events())] == ["t0", "t1", "t2", "t3", "t4"]


def _one_span():
    with span("x"):
        pass


def test_spans_of_a_thread_nest_and_time_never_goes_back():
    with Trace(None) as trace:
        for _ in range(3):
            with span("outer"):
                for _ in range(2):
                    with span("inner"), span("innermost"):
                        pass
    spans = spans_of(trace.events())

    assert [e["name"] for e in spans] == ["outer", *["inner", "innermost"] * 2] * 3
    assert [e["ts"] for e in spans] == sorted(e["ts"] for e in spans)
    open_until: list[float] = []
    for event in spans:
        while open_until and open_until[-1] <= event["ts"]:
            open_until.pop()
        end = event["ts"] + event["dur"]
        assert event["dur"] >= 0
        assert not open_until or end <= open_until[-1]
        open_until.append(end)


def test_a_span_that_fails_is_recorded_and_the_error_goes_on():
    with Trace(None) as trace, pytest.raises(KeyError), span("store"):
        raise KeyError

    assert [e["name"] for e in spans_of(trace.events())] == ["store"]


def test_nothing_is_recorded_after_the_end_and_no_file_is_written_by_a_run_that_failed(tmp_path):
    with pytest.raises(KeyError), Trace(tmp_path / "t.json") as trace:
        raise KeyError
    with span("late"):
        pass

    assert spans_of(trace.events()) == []
    assert list(tmp_path.iterdir()) == []


def test_a_second_trace_at_the_same_time_is_refused():
    with Trace(None), pytest.raises(WrongCall, match="recorded already"), Trace(None):
        pass


def test_a_missing_folder_is_refused_before_anything_runs(tmp_path):
    with pytest.raises(WrongCall, match="its folder is missing"):
        Trace(tmp_path / "nowhere" / "t.json")


def test_a_trace_stops_growing(monkeypatch):
    monkeypatch.setattr(module, "MOST_EVENTS", 2)
    with Trace(None) as trace:
        for _ in range(5):
            _one_span()

    assert (len(spans_of(trace.events())), trace.left_out) == (2, 3)


def test_events_of_several_processes_make_one_file(tmp_path):
    with Trace(None) as trace:
        _one_span()
    other = [{**event, "pid": 7} for event in trace.events()]
    write_trace(tmp_path / "both.json", [*trace.events(), *other])

    events = json.loads((tmp_path / "both.json").read_text())["traceEvents"]
    assert {event["pid"] for event in spans_of(events)} == {trace.events()[0]["pid"], 7}
