"""How a run is shown: the picture at any width, its place in a real terminal, lines for pipes and for programs."""

from __future__ import annotations

import errno
import fcntl
import json
import math
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from io import BufferedWriter, RawIOBase, StringIO, TextIOWrapper
from pathlib import Path

import click
import pytest
from alexshard.tools.live_region import Region
from alexshard.tools.live_view import curve, picture
from alexshard.tools.shown import Evaluating, Shown, record_line
from alexshard.tools.terminal import duration
from alexshard.tools.training_lines import JsonLines, Lines, Live, Quiet, json_line, reporter_for
from alexshard.trainer import Evaluation, Record, RunFolder
from rich.console import Console
from rich.text import Text

CONFIG = {
    "recipe": {
        **{"preset": "original", "width": 0.25, "seed": 7, "precision": "bf16", "batch_size": 128, "epochs": 93}
    },
    "steps_per_epoch": 100,
    "total_steps": 9300,
    "last_step": 9300,
    "classes": [{"synset": f"n{number}", "words": "thing"} for number in range(10)],
    "machine": {"devices": ["cuda:0"], "ranks": 1},
}
EVALUATION = Evaluation("val", 1, 40, 2.0, 0.5, 0.25, 300.0, 0.1)
RATES = {"weights": 0.01, "biases": 0.02, "conv1.weight": None}


def train(step, loss=2.1034, **changes):
    fields = {
        **{"kind": "train", "epoch": step / 100, "step": step, "loss": loss, "top1_error": 0.81},
        **{"top5_error": 0.423, "lr": 0.01, "images_per_s": 1280.0, "wait_s": 0.1, "seconds": 10.0},
        **{"rates": RATES, "memory_bytes": 3_210_000_000, "updates": {"conv1": 0.001}},
    }
    return fields | changes


def val(step, top1_error, **changes):
    return train(step, **{"kind": "val", "top1_error": top1_error, "seconds": 5.0, "updates": {}} | changes)


def shown(*records, folder="runs/drawn", config=CONFIG, now=1000.0):
    made = Shown(Path(folder), config)
    for record in records:
        made.add(record, now)
    return made


def lines(of, width=79, now=1000.0):
    return [line.plain for line in picture(of, width=width, now=now)]


def row(of, label, width=79, now=1000.0):
    return next(line for line in lines(of, width, now) if line.startswith(label))


HALF_WAY = (train(100, 2.3), val(100, 0.9), train(200, 2.2), val(200, 0.7), train(231), val(231, 0.75))


def test_the_picture_tells_all_that_is_known_at_80_columns():
    of = shown(*HALF_WAY)
    of.saved, of.began = (200, 900.0), 700.0
    text = "\n".join(lines(of))

    assert "── runs/drawn ─" in text
    assert "original · width 0.25 · seed 7 · bf16 · cuda:0" in text
    assert "epoch 2.31 of 93 · step 231 of 9,300 · 5 min 0 s so far · " in text
    assert "loss         2.1034 of ln(10) = 2.3026" in text
    assert row(of, "train error").split("·")[0].split() == ["train", "error", "top-1", "81.0", "%"]
    assert row(of, "val error").startswith("val error    top-1 75.0 % · top-5 42.3 % · epoch 2.31")
    assert row(of, "best so far").startswith("best so far  top-1 70.0 % · top-5 42.3 % · epoch 2")
    assert "speed        1,280.0 images/s · 1 % waiting · the network sets the pace" in text
    assert "rates        weights 0.01 · biases 0.02 · conv1.weight frozen" in text
    assert "memory       3.2 GB of cuda:0" in text
    assert "checkpoint   step 200 · 1 min 40 s ago" in text
    assert "  2.5 %" in text


@pytest.mark.parametrize("width", [1, 5, 20, 39, 79, 119, 300])
def test_no_line_is_wider_than_the_terminal(width):
    of = shown(*HALF_WAY, folder="runs/a-long-name-of-a-run-" + "x" * 60)
    of.warn("a warning that is long enough to need more than forty columns of a terminal")
    made = picture(of, width=width, now=1000.0)

    assert len(made) > 10
    assert max(line.cell_len for line in made) <= width


def test_a_narrow_terminal_leaves_out_no_figure_but_the_curves():
    wide, narrow = " ".join(lines(shown(*HALF_WAY), 119)), " ".join(lines(shown(*HALF_WAY), 39))
    figures = set(re.findall(r"\d[\d.,]*", wide))

    assert len(figures) > 15
    assert figures - set(re.findall(r"\d[\d.,]*", narrow)) == set()


def test_time_left_is_measured_until_it_is_known_and_counts_evaluations():
    of = shown()
    assert "measuring…" in "\n".join(lines(of))

    of.early = (1000.0, 0.5)
    assert of.seconds_left(1000.0) == 9300 * 128 / 1000
    assert "the loader sets the pace" in row(of, "speed")

    of.add(train(100), 1000.0)
    of.add(val(100, 0.5), 1000.0)
    left = 9200 * 128 / 1280 + 9200 / 100 * 5
    assert of.seconds_left(1000.0) == pytest.approx(left)
    assert of.seconds_left(1060.0) == pytest.approx(left - 60)
    assert f"{duration(left)} left" in "\n".join(lines(of))


def test_before_the_first_evaluation_time_left_is_said_to_be_of_training_alone():
    of = shown(train(50))
    assert f"{duration(9250 * 128 / 1280)} of training left" in "\n".join(lines(of))

    of.add(val(100, 0.5), 1000.0)
    assert "of training" not in "\n".join(lines(of))


def test_evaluations_to_come_are_as_far_apart_as_so_far_and_the_last_one_is_at_the_end():
    of = shown(train(200), val(200, 0.5), train(250), config=CONFIG | {"last_step": 650})
    assert of.seconds_left(1000.0) == pytest.approx(400 * 128 / 1280 + 3 * 5)  # after 400, 600 and 650

    # A part of the run ended at 250, by --max-steps, and was evaluated there.
    of.add(val(250, 0.5), 1000.0)
    of.add(train(399), 1000.0)
    assert of.seconds_left(1000.0) == pytest.approx(251 * 128 / 1280 + 3 * 5)  # after 400, 600 and 650


def test_an_evaluation_is_seen_while_it_lasts_and_no_time_of_training_goes_by():
    of = shown(train(100))
    of.evaluating = Evaluating(1010.0, "val", 50_000)
    left = 9200 * 128 / 1280 - 10

    assert "evaluating on val, 50,000 images" in "\n".join(lines(of, now=1100.0))
    assert [of.seconds_left(now) for now in (1010.0, 1100.0, 1900.0)] == [pytest.approx(left)] * 3

    of.add(val(100, 0.5, seconds=100.0), 1110.0)
    assert "evaluating" not in "\n".join(lines(of, now=1110.0))


def test_a_later_evaluation_takes_of_time_left_what_the_one_before_took_and_no_more():
    of = shown(train(100), val(100, 0.5, seconds=100.0), train(200))
    before = of.seconds_left(1000.0)
    of.evaluating = Evaluating(1000.0, "val", 50_000)

    assert [before - of.seconds_left(now) for now in (1060.0, 1100.0, 1900.0)] == [60.0, 100.0, 100.0]
    of.add(val(200, 0.5, seconds=100.0), 1100.0)
    assert of.seconds_left(1100.0) == pytest.approx(before - 100)  # no jump


def test_the_last_evaluation_is_seen_when_all_steps_are_done():
    of = shown(train(9300))
    assert "finishing…" in "\n".join(lines(of))

    of.evaluating = Evaluating(1000.0, "val", 1)
    assert "evaluating on val, 1 image" in lines(of)[3]
    assert "finishing" not in "\n".join(lines(of))


def test_speed_is_a_mean_over_time_of_the_last_lines_alone():
    of = shown(*(train(step, images_per_s=1.0) for step in range(1, 9)))
    for step in range(9, 28):
        of.add(train(step, images_per_s=100.0, seconds=10.0), 1000.0)
    of.add(train(28, images_per_s=400.0, seconds=30.0), 1000.0)

    assert of.images_per_s == pytest.approx((19 * 10 * 100 + 30 * 400) / 220)


def test_the_share_of_waiting_is_of_the_same_lines_as_the_speed():
    of = shown(train(1, wait_s=2.5), *(train(step, wait_s=0.0) for step in range(2, 11)))
    assert of.waiting == pytest.approx(0.025)
    assert "2 % waiting · the network sets the pace" in row(of, "speed")

    of.add(train(11, wait_s=2.5), 1000.0)  # the first of an epoch waits for a loader that begins anew
    assert of.waiting == pytest.approx(5 / 110)
    assert "the network sets the pace" in row(of, "speed")

    for step in range(12, 32):
        of.add(train(step, wait_s=1.0 if step < 31 else 6.0, seconds=5.0 if step < 31 else 15.0), 1000.0)
    assert of.waiting == pytest.approx(25 / 110)


def test_waiting_and_speed_of_a_process_before_are_not_those_of_this_one(tmp_path):
    folder = tmp_path / "r"
    folder.mkdir()
    (folder / "metrics.jsonl").write_text(json.dumps(train(1, wait_s=9.0)) + "\n")
    told = JsonLines()
    told.begin(folder, CONFIG, 1)
    assert (told.shown.waiting, told.shown.images_per_s) == (None, None)

    told.rate(100.0, 0.25, 5)
    assert (told.shown.waiting, told.shown.images_per_s) == (0.25, 100.0)


def test_lines_that_do_not_tell_their_waiting_leave_its_share_to_the_others():
    old = {name: value for name, value in train(1).items() if name != "wait_s"}
    assert shown(old).waiting is None
    assert shown(old, train(2, wait_s=2.0)).waiting == pytest.approx(0.2)


def test_figures_that_are_no_numbers_or_not_there_are_shown_as_such():
    old = {name: value for name, value in train(50).items() if name not in ("seconds", "rates", "memory_bytes")}
    of = shown(old, val(50, float("nan"), loss=float("nan")))

    assert "top-1  nan %" in row(of, "val error")
    assert of.best is None
    assert row(of, "rates").split() == ["rates", "weights", "0.01"]
    assert not any(line.startswith("memory") for line in lines(of))
    assert lines(shown(train(50, loss=float("nan"))))


def test_a_run_that_ends_early_says_of_which_schedule_it_is():
    text = "\n".join(lines(shown(train(100), config=CONFIG | {"last_step": 200}), width=119))

    assert "epoch 1.00 of 2 · step 100 of 200" in text
    assert "schedule of 93 epochs" in text

    one = CONFIG | {"last_step": 20, "total_steps": 100, "recipe": CONFIG["recipe"] | {"epochs": 1}}
    assert lines(shown(train(10), config=one), width=119)[2].endswith("schedule of 1 epoch")


def test_curves_fall_as_the_loss_does_and_share_one_axis():
    assert curve([(10, 16.0), (20, 11.0), (30, 9.0), (40, 1.0)], 4, 40) == ["█▃▁ ", "███▁"]
    assert curve([(30, 2.0), (40, 2.0)], 4, 40) == ["    ", "  ▁▁"]
    of = shown(*(train(step, loss=2.3 - step / 100) for step in range(1, 101)), val(50, 0.9), val(100, 0.4))
    high, low = row(of, "loss")[55:], row(of, "train error")[55:]
    errors = row(of, "val error")[55:], row(of, "best so far")[55:]
    full = len(errors[1])

    assert (high[0], low[-1]) == ("█", "▁")
    assert list(low) == sorted(low, reverse=True)
    assert full == len(low) > 15
    assert errors[1] == " " * (49 * full // 100) + "█" * (full - 49 * full // 100 - 1) + "▁"
    assert errors[0].strip() == errors[1].strip()[:-1]


ACTING = "\x1b]0;x\x07"  # gives a terminal's window another name


def test_names_cannot_act_on_the_terminal():
    named = {"rates": {ACTING: 0.01, f"{ACTING}2": None}, "updates": {ACTING: 0.1}}
    config = CONFIG | {
        "recipe": CONFIG["recipe"] | {"preset": ACTING, "precision": ACTING},
        "machine": {"devices": [ACTING], "ranks": 1},
    }
    of = shown(train(1, **named), val(1, 0.5, **named), folder=f"runs/{ACTING}", config=config)
    of.warn(ACTING)
    of.evaluating = Evaluating(1000.0, ACTING, 3)
    of.state = ACTING
    text = lines(of, width=200)

    assert "".join(text).count(r"\x1b]0;x\x07") == 10
    assert all(line.isprintable() for line in text)
    assert record_line(of.train).isprintable()


def test_what_is_said_of_names_cannot_act_on_the_terminal(capsys):
    for told in (Lines(), Quiet()):
        told.say(f"said of {ACTING}\nbelow")
        told.warn(f"worried by {ACTING}")

    worry = r"warning: worried by \x1b]0;x\x07"
    assert capsys.readouterr().err.splitlines() == [r"said of \x1b]0;x\x07", "below", worry, worry]


class Screen:
    """A terminal of our own: what is written to `stream` becomes rows, those that scrolled away too."""

    def __init__(self, columns=80, rows=24):
        self.master, slave = pty.openpty()
        os.set_blocking(self.master, False)
        self.stream = os.fdopen(slave, "w", encoding="utf-8", errors="backslashreplace")
        self.columns, self.height = columns, rows
        self.rows, self.wrapped = [[]], [False]  # text of each row, and whether it goes on in the next
        self.y = self.x = 0
        self.cut = ""
        self.tell_size()

    def tell_size(self):
        fcntl.ioctl(self.stream.fileno(), termios.TIOCSWINSZ, struct.pack("4H", self.height, self.columns, 0, 0))

    def resize(self, columns):
        """As most terminals do: lines are wrapped anew, and the cursor stays at its place in its line."""
        self.read()
        rows, wrapped = [], []
        for y, line in self._logical():
            if y == self.y:
                at = len(rows)
            parts = [line[i : i + columns] for i in range(0, max(1, len(line)), columns)]
            rows += parts
            wrapped += [True] * (len(parts) - 1) + [False]
        assert self.x == 0, "the cursor waits at the start of a row"
        self.rows, self.wrapped, self.y, self.columns = rows, wrapped, at, columns
        self.tell_size()

    def _logical(self):
        line, start = [], 0
        for y, (row, goes_on) in enumerate(zip(self.rows, self.wrapped, strict=True)):
            line = line + row
            if not goes_on:
                yield start, line
                line, start = [], y + 1

    def read(self, more=b""):
        """Take in what was written."""
        try:
            while chunk := os.read(self.master, 65536):
                more += chunk
        except OSError:
            pass  # nothing more now
        for text in re.findall(r"\x1b\[\??[\d;]*[A-Za-z]|\r|\n|[^\x1b\r\n]+", self.cut + more.decode()):
            self._take(text)
        return self.text()

    def _take(self, text):
        if text == "\r":
            self.x = 0
        elif text == "\n":
            self._down()
        elif text[0] == "\x1b":
            number, act = text[2:-1], text[-1]
            assert act in "AKJm", f"an escape that this terminal does not know: {text!r}"
            if act == "A":
                self.y = max(0, len(self.rows) - self.height, self.y - int(number))
            elif act in "KJ":
                assert number == ""
                self.rows[self.y] = self.rows[self.y][: self.x]
                self.wrapped[self.y] = False
            if act == "J":
                del self.rows[self.y + 1 :], self.wrapped[self.y + 1 :]
        else:
            for character in text:
                if self.x == self.columns:
                    self.wrapped[self.y] = True
                    self._down()
                    self.x = 0
                row = self.rows[self.y]
                row += " " * (self.x + 1 - len(row))
                row[self.x] = character
                self.x += 1

    def _down(self):
        self.y += 1
        if self.y == len(self.rows):
            self.rows.append([])
            self.wrapped.append(False)

    def text(self):
        return ["".join(line).rstrip() for _, line in self._logical()]

    def close(self):
        if not self.stream.closed:
            self.stream.close()
        os.close(self.master)


@pytest.fixture
def screen():
    made = Screen()
    yield made
    made.close()


NEVER_BY_ITSELF = 1e6


def region(screen, draw):
    return Region(screen.stream, draw, every_s=NEVER_BY_ITSELF)


def test_what_is_said_stays_above_and_the_picture_is_there_once(screen):
    state = ["first"]
    with region(screen, lambda _: [Text(f"picture of {state[0]}"), Text("─" * 79)]) as live:
        for number in range(40):
            state[0] = str(number)
            live.print([Text(f"said {number} " + "x" * (number * 5))])
        during = screen.read()
        state[0] = "the end"

    said = [f"said {number} " + "x" * (number * 5) for number in range(40)]
    assert during == [*(line.rstrip() for line in said), "picture of 39", "─" * 79, ""]
    assert screen.read() == [*(line.rstrip() for line in said), "picture of the end", "─" * 79, ""]


def test_a_picture_that_became_smaller_leaves_no_row_behind(screen):
    rows = [5]
    with region(screen, lambda _: [Text(f"row {n} of {rows[0]}") for n in range(rows[0])]) as live:
        live.redraw()
        rows[0] = 2
        live.redraw()

        assert screen.read() == ["row 0 of 2", "row 1 of 2", ""]


@pytest.mark.parametrize("columns", [79, 60, 40, 13, 100])
def test_a_terminal_that_changes_its_width_shows_the_picture_once(screen, columns):
    with region(screen, lambda width: [Text("─" * width), Text("short"), Text(f"{width:->{width}}")]) as live:
        live.print([Text("said before " + "y" * 100)])
        screen.resize(columns)
        live.print([Text("said after")])

        width = columns - 1
        assert screen.read() == [
            *("said before " + "y" * 100, "said after", "─" * width, "short", f"{width:->{width}}", "")
        ]


def test_a_terminal_of_few_rows_shows_the_first_ones():
    screen = Screen(rows=4)
    with region(screen, lambda _: [Text(f"row {number}") for number in range(9)]) as live:
        live.print([Text("said")])
        live.redraw()

        assert screen.read() == ["said", "row 0", "row 1", "row 2", ""]
    screen.close()


def test_an_exception_leaves_the_last_state_and_the_streams_as_they_were(screen):
    before, state = (sys.stdout, sys.stderr), ["old"]
    with pytest.raises(ZeroDivisionError), region(screen, lambda _: [Text(state[0])]):
        state[0] = "new"
        raise ZeroDivisionError

    assert screen.read() == ["new", ""]
    assert (sys.stdout, sys.stderr) == before


def test_what_others_print_on_the_terminal_goes_above(screen, monkeypatch):
    monkeypatch.setattr(sys, "stderr", screen.stream)
    with region(screen, lambda _: [Text("picture")]):
        print("half ", end="", file=sys.stderr)
        print("and half", file=sys.stderr)
        click.echo("by click", err=True)
        print("without an end", end="", file=sys.stderr)

    text = screen.read()
    assert text[:2] == ["half and half", "by click"]
    assert text[2:] == ["without an end", "picture", ""]


def test_a_terminal_that_goes_away_does_not_end_the_run():
    screen = Screen()
    with region(screen, lambda _: [Text("picture")]) as live:
        os.close(screen.master)
        live.print([Text("said to nobody")])
        live.print([Text("and again")])
    print("at the end", file=screen.stream, flush=True)
    screen.stream.close()


def test_a_stream_of_ascii_is_given_ascii(screen):
    stream = os.fdopen(os.dup(screen.stream.fileno()), "w", encoding="ascii")
    with Region(stream, lambda _: [Text("━─·…█▁")], every_s=NEVER_BY_ITSELF) as live:
        live.redraw()
    stream.close()

    assert screen.read() == ["=-|...^_", ""]


def test_the_live_view_takes_what_a_run_tells(screen, monkeypatch, tmp_path):
    monkeypatch.setattr(sys, "stderr", screen.stream)
    monkeypatch.setenv("TERM", "xterm-256color")
    (tmp_path / "metrics.jsonl").write_text(json.dumps(val(100, 0.6)) + "\n" + json.dumps(train(120)) + "\n")
    with reporter_for(quiet=False, as_json=False) as live:
        assert isinstance(live, Live)
        live.say("before it begins")
        live.begin(tmp_path, CONFIG, 120)
        live.rate(900.0, 0.3, 1000)
        live.record(Record(**train(200, 1.9)))
        live.record(Record(**val(200, 0.65)), EVALUATION)
        live.warn("the disk is nearly full")
        live.saved(200)
        during = "\n".join(screen.read())
    after = screen.read()

    assert during.startswith("before it begins\nwarning: the disk is nearly full\n── ")
    assert " left" in during
    assert " left" not in "\n".join(after)
    assert sum("step 200 of 9,300" in line for line in after) == 1
    assert "top-1 65.0 % · top-5 42.3 % · epoch 2" in "\n".join(after)
    assert "best so far  top-1 60.0 % · top-5 42.3 % · epoch 1" in "\n".join(after)
    assert "checkpoint   step 200" in "\n".join(after)
    assert after[-2:] == ["warning: the disk is nearly full", ""]


FEED = f"""
import sys
from pathlib import Path
from alexshard.tools.training_lines import reporter_for
from alexshard.trainer import Evaluation, Record
with reporter_for(quiet=False, as_json=False) as told:
    told.say("run in a process of its own")
    told.begin(Path("runs/real"), {CONFIG!r}, 0)
    for step in range(1, 60):
        told.record(Record(**({train(1)!r} | dict(step=step, epoch=step / 100))))
        if step % 10 == 0:
            told.say(f"said after {{step}}")
    if "fail" in sys.argv:
        raise SystemExit(3)
print("result on stdout")
"""


@pytest.mark.parametrize("ending", ["well", "fail"])
def test_a_process_on_a_real_terminal_shows_its_run_and_leaves_it_clean(ending):
    screen = Screen(columns=100)
    environment = os.environ | {"TERM": "xterm-256color"}
    command = [sys.executable, "-c", FEED, ending]
    with subprocess.Popen(command, stdout=screen.stream, stderr=screen.stream, env=environment) as process:
        os.set_blocking(screen.master, True)
        screen.stream.close()  # the process alone has it now, so that reading ends with it
        content = b""
        try:
            while chunk := os.read(screen.master, 65536):
                content += chunk
        except OSError:
            pass  # the terminal's other end is closed
    text = screen.read(content)
    os.close(screen.master)

    assert process.returncode == (3 if ending == "fail" else 0)
    assert text[:6] == ["run in a process of its own", *(f"said after {step}" for step in range(10, 60, 10))]
    assert text[6].startswith("── runs/real ─")
    assert sum("── runs/real" in line for line in text) == 1
    assert "step 59 of 9,300" in text[8]
    assert text[-2:] == ["result on stdout" if ending == "well" else text[-2], ""]
    assert b"\x1b[?25l" not in content  # the cursor is never hidden, so nobody need bring it back


def test_json_lines_parse_and_carry_the_figures(capsys, tmp_path):
    with reporter_for(quiet=True, as_json=True) as told:
        assert isinstance(told, JsonLines)
        told.begin(tmp_path, CONFIG, 0)
        told.say("a word")
        told.warn("a worry")
        told.rate(1000.0, 0.25, 5000)
        told.record(Record(**train(100, float("nan"))))
        told.evaluating("val", 40)
        told.record(Record(**val(100, 0.5)), EVALUATION)
        told.saved(100)
    found = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    begin, say, warning, rate, trained, evaluating, judged, saved = found

    assert [one["event"] for one in found] == [
        *("begin", "say", "warning", "rate", "train", "evaluating", "val", "saved")
    ]
    assert (evaluating["split"], evaluating["samples"]) == ("val", 40)
    assert {one["schema"] for one in found} == {1}
    assert (begin["last_step"], begin["classes"], begin["devices"]) == (9300, 10, ["cuda:0"])
    assert begin["chance_loss"] == pytest.approx(2.302585)
    assert (say["line"], warning["line"]) == ("a word", "a worry")
    assert (rate["waiting_share"], rate["pace"], rate["seconds_left"]) == (0.25, "loader", 5.0)
    assert trained["loss"] is None
    assert trained["rates"] == RATES
    assert (trained["waiting_share"], trained["images_left"]) == (pytest.approx(0.01), 9200 * 128)
    assert trained["seconds_left"] == pytest.approx(920, abs=5)
    assert {*train(1)} - {"kind"} <= trained.keys()
    assert saved == {"schema": 1, "event": "saved", "step": 100, "epoch": 1.0}
    assert (judged["split"], judged["views"], judged["samples"], judged["top1_error"]) == ("val", 1, 40, 0.5)


def test_a_line_of_json_is_one_line_without_numbers_that_json_does_not_have():
    line = json_line("end", a=float("inf"), b=[float("nan"), {"c": 1}], d="two\nlines")

    assert "\n" not in line
    assert json.loads(line) == {"schema": 1, "event": "end", "a": None, "b": [None, {"c": 1}], "d": "two\nlines"}


def test_quiet_says_warnings_alone_and_on_stderr(capsys, tmp_path):
    with reporter_for(quiet=True, as_json=False) as told:
        assert isinstance(told, Quiet)
        told.begin(tmp_path, CONFIG, 0)
        told.say("a word")
        told.rate(1000.0, 0.25, 5000)
        told.record(Record(**train(100)))
        told.record(Record(**val(100, 0.5)), EVALUATION)
        told.warn("a worry")
        told.saved(100)

    assert capsys.readouterr() == ("", "warning: a worry\n")


def test_what_is_no_terminal_is_told_plain_lines(capsys, tmp_path):
    with reporter_for(quiet=False, as_json=False) as told:
        assert isinstance(told, Lines)
        told.begin(tmp_path, CONFIG, 0)
        told.say("a word")
        told.warn("a worry")
        told.rate(1000.0, 0.25, 5000)
        told.record(Record(**train(1)))
        told.record(Record(**train(2)))  # within the same seconds: not told
        told.evaluating("val", 40)
        told.record(Record(**val(2, 0.5)), EVALUATION)
        told.evaluating("val", 40)  # the one before took five seconds
        told.record(Record(**val(4, 0.5, seconds=0.5)), EVALUATION)
        told.evaluating("val", 40)  # and this one no half: of no news
        told.printed = -math.inf
        told.record(Record(**train(6)))

    figures = "loss 2.1034  top-1 {} %  top-5 42.3 %  rate 0.01  1,280.0 images/s"
    left = duration(9294 * 128 / 1280 + 4648 * 0.5)
    assert capsys.readouterr().err.splitlines() == [
        "loss of a constant answer: ln(10) = 2.3026",
        "a word",
        "warning: a worry",
        "measured: 1,000.0 images/s, 25 % of the time waiting for batches (the loader sets the pace); "
        "5.0 s of training left",
        f"train  epoch 0.01  step 1  {figures.format('81.0')}  waiting 1 %  {duration(929.9)} of training left",
        "evaluating on val, 40 images",
        f"val    epoch 0.02  step 2  {figures.format('50.0')}",
        "evaluating on val, 40 images",
        f"val    epoch 0.04  step 4  {figures.format('50.0')}",
        f"train  epoch 0.06  step 6  {figures.format('81.0')}  waiting 1 %  {left} left",
    ]


def test_the_last_line_of_training_tells_no_time_left(capsys, tmp_path):
    with reporter_for(quiet=False, as_json=False) as told:
        told.begin(tmp_path, CONFIG, 9299)
        told.record(Record(**train(9300)))

    assert capsys.readouterr().err.splitlines()[-1].endswith("images/s  waiting 1 %")


@pytest.fixture(scope="module")
def home(sample_source, tmp_path_factory):
    """A folder with a shard set in shards/."""
    home = tmp_path_factory.mktemp("home")
    build = [sys.executable, "-m", "alexshard.tools.cli_alexshard", "build", str(sample_source), "--size", "74"]
    subprocess.run([*build, "--out", str(home / "shards" / "drawn")], check=True, capture_output=True)
    return home


@pytest.mark.parametrize(
    ("options", "streams"),
    [
        ((), {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE}),
        ((), {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}),
        (("--json",), {"stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}),
    ],
)
@pytest.mark.parametrize("lines_read", [1, 4])
def test_a_reader_that_goes_away_does_not_end_the_run(home, tmp_path, options, streams, lines_read):
    command = [
        sys.executable,
        "-m",
        "alexshard.tools.cli_alextrain",
        "run",
        "--out",
        str(tmp_path / "r"),
        *options,
    ]
    command += ["--epochs", "2", "--width", "0.125", "-b", "32", "--threads", "1", "--log-every", "1"]
    with subprocess.Popen(command, cwd=home, text=True, **streams) as process:
        pipe = process.stdout or process.stderr
        read = [pipe.readline() for _ in range(lines_read)]
        pipe.close()

    assert all(read)
    assert process.returncode == 0
    folder = RunFolder(tmp_path / "r")
    assert folder.load().step == folder.configuration()["last_step"] == folder.records()[-1].step > 4


def test_a_full_disk_takes_the_lines_and_neither_the_run_nor_its_exit_code():
    with Path("/dev/full").open("w") as full:
        done = subprocess.run([sys.executable, "-c", FEED], stdout=subprocess.PIPE, stderr=full, text=True)

    assert (done.returncode, done.stdout) == (0, "result on stdout\n")


def test_lines_that_a_full_disk_did_not_take_come_when_there_is_room(tmp_path, monkeypatch):
    class Disk(RawIOBase):
        def __init__(self):
            self.full, self.taken = True, b""

        def writable(self):
            return True

        def write(self, content):
            if self.full:
                raise OSError(errno.ENOSPC, "No space left on device")
            self.taken += bytes(content)
            return len(content)

    disk = Disk()
    monkeypatch.setattr(sys, "stderr", TextIOWrapper(BufferedWriter(disk), encoding="utf-8"))
    with reporter_for(quiet=False, as_json=False) as told:
        told.say("while it was full")
        disk.full = False
        told.say("and then")

    assert disk.taken.decode().splitlines() == ["while it was full", "and then"]


def test_a_terminal_that_cannot_move_its_cursor_is_told_lines(screen, monkeypatch):
    monkeypatch.setattr(sys, "stderr", screen.stream)
    monkeypatch.setenv("TERM", "dumb")

    with reporter_for(quiet=False, as_json=False) as told:
        assert type(told) is Lines


def test_the_pictures_colours_are_of_the_terminals_own_palette():
    console = Console(file=StringIO(), force_terminal=True, color_system="truecolor", width=80)
    of = shown(*HALF_WAY)
    of.warn("worry")
    for line in picture(of, width=79, now=1000.0):
        console.print(line, soft_wrap=True)
    codes = set(re.findall(r"\x1b\[([\d;]*)m", console.file.getvalue()))

    assert len(codes) > 4
    # Bold, dim, and red, green, magenta, cyan: white or yellow is not to be seen on light, blue not on dark.
    assert {int(code) for some in codes for code in some.split(";") if code} <= {0, 1, 2, 31, 32, 35, 36}
