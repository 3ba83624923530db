"""`alextrain watch`: a run of another process, shown from what its folder holds."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import re
import signal
import struct
import subprocess
import sys
import termios
from contextlib import contextmanager

import pytest
from alexshard.shards import AlexshardError, WrongCall, locked
from alexshard.tools import watch
from alexshard.tools.live_view import picture
from alexshard.tools.run_files import Metrics, newest_checkpoint
from alexshard.tools.shown import json_line, record_line
from alexshard.tools.watch import Watched

from tests.tools.test_live_view import CONFIG, train, val

# As `alextrain` will have it, without what else `alextrain` is.
PROGRAM = """
import sys, click
from alexshard.tools.terminal import Cli
from alexshard.tools.watch_command import watch
main = click.Group(commands=[watch]); main.__class__ = Cli
try:
    main(prog_name="alextrain")
finally:
    assert "torch" not in sys.modules, "torch was imported"
"""
SHORT = CONFIG | {"last_step": 40, "total_steps": 40, "steps_per_epoch": 10}


def command(*arguments):
    return [sys.executable, "-c", PROGRAM, "watch", *map(str, arguments)]


def run(*arguments):
    return subprocess.run(command(*arguments), capture_output=True, text=True, check=False)


@contextmanager
def at_work(folder):
    """Within the block this process is the one that trains in the folder."""
    with locked(folder, busy=lambda holder: WrongCall(f"busy: {holder}"), no_locks="no locks"):
        yield


def make(folder, *records, config=SHORT):
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    if records:
        append(folder, *records)
    return folder


def append(folder, *records):
    with (folder / "metrics.jsonl").open("a") as file:
        file.writelines(json.dumps(record) + "\n" for record in records)


def replace(folder, *records):
    """As a run that goes on does: what came after its checkpoint is dropped."""
    (folder / "metrics.jsonl.part").write_text("".join(json.dumps(record) + "\n" for record in records))
    (folder / "metrics.jsonl.part").rename(folder / "metrics.jsonl")


def steps(records):
    return [record["step"] for record in records]


# What is read of metrics.jsonl.


def test_each_record_is_read_once_and_half_a_line_not_before_it_is_whole(tmp_path):
    with Metrics(tmp_path) as metrics:
        assert metrics.read().records == []

        append(tmp_path, train(1), train(2))
        assert steps(metrics.read().records) == [1, 2]
        assert metrics.read().records == []

        line = json.dumps(train(3)) + "\n"
        for part in (line[:17], line[17:-1]):
            with (tmp_path / "metrics.jsonl").open("a") as file:
                file.write(part)
            assert metrics.read().records == []
        with (tmp_path / "metrics.jsonl").open("a") as file:
            file.write("\n" + json.dumps(train(4))[:9])
        assert steps(metrics.read().records) == [3]


def test_reading_goes_on_where_it_ended(tmp_path):
    append(tmp_path, *map(train, range(100)))
    with Metrics(tmp_path) as metrics:
        metrics.read()
        before = metrics._file.tell()
        append(tmp_path, train(100))
        read = []
        original = metrics._file
        metrics._file = type(
            "Counting",
            (),
            {
                "read": lambda _: read.append(original.read()) or read[-1],
                "fileno": lambda _: original.fileno(),
                "tell": lambda _: original.tell(),
                "close": lambda _: original.close(),
            },
        )()

        assert steps(metrics.read().records) == [100]
        assert before > 100 * len(read[0]) * 0.9


@pytest.mark.parametrize("longer", [False, True])
def test_a_file_that_took_the_place_of_the_one_before_is_read_from_its_start(tmp_path, longer):
    append(tmp_path, *map(train, (10, 20, 30)))
    with Metrics(tmp_path) as metrics:
        metrics.read()
        with (tmp_path / "metrics.jsonl").open("a") as file:
            file.write('{"kind": "tr')  # what a killed process left
        metrics.read()
        after = [train(10), *map(train, range(11, 40 if longer else 12))]
        replace(tmp_path, *after)
        news = metrics.read()

        assert news.again
        assert steps(news.records) == steps(after)


def test_a_file_that_was_cut_is_read_again(tmp_path):
    append(tmp_path, *map(train, (10, 20, 30)))
    with Metrics(tmp_path) as metrics:
        metrics.read()
        (tmp_path / "metrics.jsonl").write_text(json.dumps(train(10)) + "\n")

        assert steps(metrics.read().records) == [10]


def test_lines_that_are_no_records_are_passed_over_and_counted(tmp_path):
    make(tmp_path, train(1))
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"kind": "dog"}\nnonsense\n[1]\n{"kind": "train", "step": null, "epoch": 1}\n')
    append(tmp_path, train(2))
    watched = Watched(tmp_path)

    assert steps(watched.records) == [1, 2]
    assert watched.shown.warnings == ("4 lines of metrics.jsonl are no records",)
    watched.close()


@pytest.mark.parametrize(
    "odd",
    [
        *({"step": 1.5}, {"step": float("nan")}, {"step": True}, {"step": 10**400}, {"epoch": float("inf")}),
        *({"epoch": 10**400}, {"rates": [1]}, {"rates": {"weights": "fast"}}, {"memory_bytes": "much"}),
    ],
)
def test_a_line_with_an_odd_value_is_no_record(tmp_path, odd):
    make(tmp_path, train(1), train(2) | odd)
    watched = Watched(tmp_path)

    assert steps(watched.records) == [1]
    assert watched.shown.warnings == ("1 line of metrics.jsonl is no record",)
    watched.close()


@pytest.mark.parametrize("name", ["loss", "top1_error", "top5_error", "lr", "images_per_s", "wait_s", "seconds"])
@pytest.mark.parametrize("value", [None, "x", [], {}, 10**400, float("inf")])
def test_a_figure_that_is_no_number_is_shown_as_not_known(tmp_path, name, value):
    make(tmp_path, train(1) | {name: value}, val(1, 0.5) | {name: value})
    watched = Watched(tmp_path)

    assert steps(watched.records) == [1, 1]
    assert picture(watched.shown, width=79, now=0.0)
    assert all(record_line(record) for record in watched.records)
    assert json_line("end", **watched.report())
    watched.close()


def test_the_newest_checkpoint_is_known_by_its_name(tmp_path):
    assert newest_checkpoint(tmp_path) is None
    (tmp_path / "checkpoints").mkdir()
    assert newest_checkpoint(tmp_path) is None
    for name in ("step-000000009.pt", "step-000000010.pt", "step-000000011.pt.part", "best.pt"):
        (tmp_path / "checkpoints" / name).touch()
    os.utime(tmp_path / "checkpoints" / "step-000000010.pt", (7, 7))

    assert newest_checkpoint(tmp_path) == (10, 7.0)


# How it stands.


def test_once_prints_how_a_finished_run_stands(tmp_path):
    folder = make(tmp_path / "r", *(train(step) for step in range(1, 41)), val(30, 0.5), val(40, 0.6))
    done = run(folder, "--once")

    assert (done.returncode, done.stderr) == (0, "")
    assert "done: all 40 steps" in done.stdout
    assert "step 40 of 40" in done.stdout
    assert "best so far  top-1 50.0 %" in done.stdout
    assert "measuring" not in done.stdout
    assert "\x1b" not in done.stdout


def test_once_says_who_is_at_work_or_that_nobody_is(tmp_path):
    folder = make(tmp_path / "r", train(20))
    with at_work(folder):
        told = run(folder, "--once").stdout
    left = run(folder, "--once").stdout

    assert f"process {os.getpid()} on {os.uname().nodename} is at work on it, since " in told
    assert " left" in told
    assert "stopped after step 20 of 40: nobody is at work on it" in left


@pytest.mark.parametrize("held", [True, False])
def test_once_as_json_is_one_object_with_the_figures(tmp_path, held):
    folder = make(tmp_path / "r", train(20, loss=float("nan")), val(20, 0.25))
    if held:
        with at_work(folder):
            found = json.loads(run(folder, "--once", "--json").stdout)
    else:
        found = json.loads(run(folder, "--once", "--json").stdout)

    assert (found["schema"], found["step"], found["last_step"], found["classes"]) == (1, 20, 40, 10)
    assert found["state"] == ("at work" if held else "stopped")
    assert (found["holder"] or {}).get("pid") == (os.getpid() if held else None)
    assert found["train"]["loss"] is None
    assert found["best"] == found["val"]
    assert found["val"]["top1_error"] == 0.25
    assert found["waiting_share"] == pytest.approx(0.01)
    assert found["images_left"] == 20 * 128
    assert found["seconds_left"] is not None


def checkpoint(folder, step):
    (folder / "checkpoints").mkdir(exist_ok=True)
    (folder / "checkpoints" / f"step-{step:09d}.pt").touch()


def ended(folder, state, step, *, number=None, what=None, remedy=None):
    words = {"schema": 1, "state": state, "step": step, "signal": number, "what": what, "remedy": remedy}
    (folder / "end.json").write_text(json.dumps(words))


def told_of(folder):
    """State, verdict and the report for programs."""
    watched = Watched(folder)
    watched.close()
    return watched.state(), watched.verdict(), watched.report()


@pytest.mark.parametrize("step", [29, 40])
def test_a_run_that_was_killed_goes_on_from_its_checkpoint_not_from_its_figures(tmp_path, step):
    folder = make(tmp_path / "r", train(20), train(step))
    checkpoint(folder, 23)
    state, verdict, report = told_of(folder)

    assert state == (f"nobody is at work on it: figures up to step {step} of 40; goes on from checkpoint 23")
    assert verdict == f"{state} by alextrain run --resume {folder}"
    assert (report["state"], report["step"], report["checkpoint_step"]) == ("stopped", step, 23)
    assert report["ended"] is None


def test_a_run_that_a_signal_stopped_names_it(tmp_path):
    folder = make(tmp_path / "r", train(20))
    checkpoint(folder, 20)
    ended(folder, "stopped", 20, number="SIGUSR1")
    state, verdict, report = told_of(folder)

    assert state == "stopped by SIGUSR1 after step 20 of 40: nobody is at work on it"
    assert verdict == f"{state}; alextrain run --resume {folder} goes on"
    assert (report["state"], report["ended"]["signal"]) == ("stopped", "SIGUSR1")


def test_a_run_that_failed_says_why_and_what_to_do_and_not_to_resume(tmp_path):
    folder = make(tmp_path / "r", train(10), train(12))
    checkpoint(folder, 10)
    remedy = "a new run, with another --out and --lr 0.005, and alexshard verify --deep on the shard set"
    ended(folder, "failed", 13, what="the loss of step 13 is not finite", remedy=remedy)
    state, verdict, report = told_of(folder)
    once = run(folder, "--once")

    assert state == "failed after step 13 of 40: the loss of step 13 is not finite"
    assert verdict == f"{state}; what to do: {remedy}"
    assert (report["state"], report["ended"]["what"]) == ("failed", "the loss of step 13 is not finite")
    assert report["ended"]["remedy"] == remedy
    assert f"{state} what to do: {remedy}" in " ".join(once.stdout.split())
    assert "--resume" not in once.stdout
    assert max(map(len, once.stdout.splitlines())) < 80


def test_a_run_that_failed_and_is_at_work_again_is_at_work(tmp_path):
    folder = make(tmp_path / "r", train(10))
    ended(folder, "failed", 10, what="out of memory", remedy="-b 16")
    with at_work(folder):
        state, _, report = told_of(folder)

    assert "is at work on it" in state
    assert (report["state"], report["ended"]) == ("at work", None)


def test_a_run_that_ended_before_its_last_step_by_its_rule_is_done(tmp_path):
    folder = make(tmp_path / "r", train(30), val(30, 0.25))
    ended(folder, "done", 30)
    state, verdict, report = told_of(folder)

    assert state == "done after step 30 of 40"
    assert verdict == "done after step 30 of 40; best top-1 error 25.0 %"
    assert report["state"] == "done"


@pytest.mark.parametrize(
    "content", ["{", "[]", "[" * 200_000, '{"state": "x", "step": 1}', '{"state": "failed", "step": "x"}']
)
def test_an_end_that_cannot_be_read_is_as_none(tmp_path, content):
    folder = make(tmp_path / "r", train(20))
    (folder / "end.json").write_text(content)

    assert told_of(folder)[0] == "stopped after step 20 of 40: nobody is at work on it"


def evaluating(folder):
    watched = Watched(folder)
    watched.close()
    seen = "evaluating, it seems" in "\n".join(line.plain for line in picture(watched.shown, width=119, now=0.0))
    assert seen == watched.report()["evaluating"]
    return seen


def test_at_an_epochs_end_without_its_evaluation_it_is_evaluating(tmp_path):
    folder = make(tmp_path / "r", train(9))
    with at_work(folder):
        assert not evaluating(folder)
        append(folder, train(10))
        assert evaluating(folder)
        append(folder, val(10, 0.5))
        assert not evaluating(folder)
        append(folder, train(20))
        assert evaluating(folder)
        append(folder, train(21))
        assert not evaluating(folder)
        append(folder, train(40))
        assert evaluating(folder)
    assert not evaluating(folder)


def test_no_evaluation_is_seen_where_there_was_none_after_the_epochs_before(tmp_path):
    folder = make(tmp_path / "r", train(10), train(20))
    with at_work(folder):
        assert not evaluating(folder)
        append(folder, val(20, 0.5), train(30))
        assert not evaluating(folder)


def test_a_run_that_is_just_being_made_is_waited_for(tmp_path):
    with at_work(tmp_path / "r"):
        bare = run(tmp_path / "r", "--once")
        make(tmp_path / "r")
        begun = run(tmp_path / "r", "--once")

    assert (bare.returncode, begun.returncode) == (0, 0)
    assert "is at work on it" in bare.stdout
    assert "step 0 of 40 · measuring…" in begun.stdout


@pytest.mark.parametrize("options", [(), ("--once",), ("--once", "--json"), ("--json",)])
@pytest.mark.parametrize("there", [True, False])
def test_a_folder_that_is_no_run_is_refused(tmp_path, options, there):
    if there:
        (tmp_path / "r").mkdir()
    done = run(tmp_path / "r", *options)

    assert done.returncode == 2
    assert (
        f"error: {tmp_path / 'r'} is no run: {'it has no config' if there else 'there is no such'}" in done.stderr
    )
    assert "what to do: name the folder that alextrain run made" in done.stderr
    if "--json" in options:
        assert json.loads(done.stdout)["exit_code"] == 2


@pytest.mark.parametrize("content", ["{", "[]", "", "[" * 200_000])
def test_a_config_that_cannot_be_read_is_an_error_that_says_where(tmp_path, content):
    make(tmp_path / "r")
    (tmp_path / "r" / "config.json").write_text(content)
    done = run(tmp_path / "r", "--once")

    assert done.returncode == 1
    assert f"where: {tmp_path / 'r' / 'config.json'}, line 1" in done.stderr


ODD = {
    **dict.fromkeys(("total_steps", "last_step", "steps_per_epoch"), ("x", 1.5, -1, True, [], 10**400)),
    **dict.fromkeys(("recipe", "machine"), ("x", 3, [1])),
    "classes": ("x", 3, {"a": 1}),
    "recipe.batch_size": ("x", -1, 0.5),
    "recipe.seed": ("x", {}),
    **dict.fromkeys(("recipe.width", "recipe.epochs"), ("x", True, [], 10**400, float("nan"))),
    **dict.fromkeys(("recipe.preset", "recipe.precision"), (3, {})),
    "machine.devices": ("cpu", [3], {}),
    "machine.ranks": ("x", -1),
    "schedule_steps": (5, ["x"], [-1]),
    "shard_set": ("x", 3),
}


def with_value(name, value):
    part, _, of = name.rpartition(".")
    return SHORT | ({part: SHORT[part] | {of: value}} if part else {of: value})


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in ODD.items() for value in values])
def test_a_config_of_odd_values_is_a_damaged_one_and_named(tmp_path, name, value):
    make(tmp_path / "r", train(20), config=with_value(name, value))

    with pytest.raises(AlexshardError, match=rf"config.json of the run cannot be read: {name} is .*, not a"):
        Watched(tmp_path / "r")


@pytest.mark.parametrize("name", ODD)
def test_a_config_in_which_something_is_not_known_is_shown_without(tmp_path, name):
    make(tmp_path / "r", train(20), config=with_value(name, None))
    watched = Watched(tmp_path / "r")

    assert "step 20" in "\n".join(line.plain for line in picture(watched.shown, width=79, now=0.0))
    assert json_line("end", **watched.report())
    watched.close()


def test_a_failure_with_json_is_a_line_where_lines_are_asked_for(tmp_path):
    make(tmp_path / "r", config=SHORT | {"total_steps": "x"})
    lines, once = run(tmp_path / "r", "--json"), run(tmp_path / "r", "--json", "--once")

    assert (lines.returncode, once.returncode) == (1, 1)
    (line,) = map(json.loads, lines.stdout.splitlines())
    assert (line["event"], line["exit_code"]) == ("error", 1)
    assert line["error"]["what"] == json.loads(once.stdout)["error"]["what"]
    assert 'total_steps is "x", not a whole number from 0' in line["error"]["what"]
    assert "Traceback" not in lines.stderr


# Following: what the other process does happens where the watching one would sleep.


def followed(monkeypatch, folder, happenings, **options):
    """Follow the run in this process; before each look but the first the next of `happenings` takes place."""
    to_come = iter(happenings)
    monkeypatch.setattr(watch.time, "sleep", lambda _: next(to_come)())
    watch.follow(folder, every_s=1.0, **({"as_json": False} | options))
    assert next(to_come, None) is None, "it ended too early"


class Worker:
    """Another process that holds the lock."""

    def __init__(self, folder):
        self.folder, self.process = folder, None

    def begin(self):
        code = (
            "import sys; from alexshard.shards import locked; from pathlib import Path\n"
            "with locked(Path(sys.argv[1]), busy=None, no_locks=''): print('mine', flush=True); sys.stdin.read()"
        )
        arguments = [sys.executable, "-c", code, str(self.folder)]
        self.process = subprocess.Popen(arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout.readline() == "mine\n"

    def end(self, number=None):
        if number is None:
            self.process.communicate()
        else:
            self.process.send_signal(number)
            self.process.communicate()


def test_each_new_line_is_told_once_until_nobody_is_at_work(tmp_path, monkeypatch, capsys):
    folder = make(tmp_path / "r", *(train(step) for step in range(1, 21)))
    worker = Worker(folder)
    worker.begin()
    happenings = (
        lambda: None,
        lambda: append(folder, train(21)),
        lambda: append(folder, val(21, 0.5), train(22)),
        worker.end,
    )
    followed(monkeypatch, folder, happenings)
    first, *figures, last = capsys.readouterr().out.splitlines()

    assert "is at work on it" in first
    assert [int(line.split("step ")[1].split()[0]) for line in figures] == [*range(11, 22), 21, 22]
    assert last == (
        f"stopped after step 22 of 40: nobody is at work on it; alextrain run --resume {folder} goes on"
    )


def test_a_run_that_was_killed_and_resumed_by_another_process_is_followed(tmp_path, monkeypatch, capsys):
    folder = make(tmp_path / "r", train(10), train(20), val(20, 0.5), train(30))
    first, second = Worker(folder), Worker(folder)
    first.begin()

    def resumed():
        first.end(signal.SIGKILL)
        second.begin()
        replace(folder, train(10), train(20), val(20, 0.5), train(25, 1.7))

    def further():
        append(folder, train(30, 1.5), train(40, 1.4), val(40, 0.1))

    followed(monkeypatch, folder, (resumed, further, second.end))
    told = capsys.readouterr().out.splitlines()

    assert f"process {second.process.pid} on " in told[5]
    assert told[5].endswith("goes on with the run")
    losses = [re.search(r"step (\d+)  loss ([\d.]+)", line) for line in told]
    assert [found.groups() for found in losses[6:] if found] == [
        *(("25", "1.7000"), ("30", "1.5000"), ("40", "1.4000"), ("40", "2.1034"))
    ]
    assert told[-1] == "done: all 40 steps; best top-1 error 10.0 %"


def test_figures_of_a_file_that_was_replaced_are_those_of_the_new_one(tmp_path):
    folder = make(tmp_path / "r", train(10), val(10, 0.2), train(20, loss=9.0))
    with at_work(folder):
        watched = Watched(folder)
        replace(folder, train(10), train(11))
        news = watched.look()

    assert (news.again, news.known) == (True, 1)
    assert steps(watched.records) == [10, 11]
    assert watched.shown.step == 11
    assert watched.shown.best is None
    watched.close()


def test_a_longer_last_step_of_a_resumption_is_noticed(tmp_path):
    folder = make(tmp_path / "r", train(40))
    watched = Watched(folder)
    assert watched.state() == "done: all 40 steps"

    (folder / "new").write_text(json.dumps(SHORT | {"last_step": 80}))
    (folder / "new").rename(folder / "config.json")
    watched.look()
    assert watched.state() == "stopped after step 40 of 80: nobody is at work on it"
    assert "step 40 of 80" in "\n".join(line.plain for line in picture(watched.shown, width=79, now=0))
    watched.close()


def test_json_lines_tell_the_past_what_comes_and_the_end(tmp_path, monkeypatch, capsys):
    folder = tmp_path / "r"
    worker = Worker(folder)
    worker.begin()
    happenings = (
        lambda: make(folder),
        lambda: append(folder, train(10), train(20)),
        lambda: replace(folder, train(10), train(15)),
        worker.end,
    )
    followed(monkeypatch, folder, happenings, as_json=True)
    found = [json.loads(line) for line in capsys.readouterr().out.splitlines()]

    assert [one["event"] for one in found] == ["begin", "train", "train", "again", "train", "train", "end"]
    assert (found[0]["last_step"], found[0]["holder"]["pid"]) == (40, worker.process.pid)
    assert steps(found[1:3]) == [10, 20]
    assert found[1]["waiting_share"] == pytest.approx(0.01)
    assert found[1]["chance_loss"] == pytest.approx(2.302585)
    assert steps(found[4:6]) == [10, 15]
    assert (found[6]["state"], found[6]["step"]) == ("stopped", 15)


# In a process of its own.


def test_a_second_process_tells_what_the_first_appends(tmp_path):
    folder = make(tmp_path / "r", train(1))
    with at_work(folder):
        process = subprocess.Popen(
            command(folder, "--every", 0.01), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        assert "is at work on it" in process.stdout.readline()
        for step in range(1, 40):
            assert f"step {step} " in process.stdout.readline()
            append(folder, train(step + 1))
        assert "step 40 " in process.stdout.readline()
    rest, errors = process.communicate()

    assert (process.returncode, errors) == (0, "")
    assert rest == "done: all 40 steps\n"


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_the_watching_at_once_and_not_the_run(tmp_path, number, code):
    folder = make(tmp_path / "r", train(1))
    with at_work(folder):
        process = subprocess.Popen(
            command(folder, "--every", 1_000_000), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        process.stdout.readline()
        process.stdout.readline()  # what was told before it sleeps for eleven days
        process.send_signal(number)
        _, errors = process.communicate()

    assert process.returncode == code
    assert errors.splitlines()[-1] == f"stopped by {number.name}"
    assert "no longer watched" in errors


def test_on_a_terminal_it_shows_the_live_view_and_how_the_run_ended(tmp_path):
    folder = make(tmp_path / "r", train(10), val(10, 0.5), train(20))
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("4H", 30, 100, 0, 0))
    environment = os.environ | {"TERM": "xterm-256color"}
    content = b""

    def until(words):
        nonlocal content
        while words not in content:
            content += os.read(master, 65536)

    with at_work(folder):
        process = subprocess.Popen(
            command(folder, "--every", 0.01), stdout=slave, stderr=slave, env=environment, close_fds=True
        )
        os.close(slave)
        until(b"is at work on it")
        append(folder, train(30, loss=1.2345))
        until(b"1.2345")
    until(b"goes on")
    process.wait()
    os.close(master)
    text = re.sub(r"\x1b\[[\d;]*[A-Za-z]", "", content.decode())

    assert process.returncode == 0
    assert "val error    top-1 50.0 %" in text
    assert text.index("is at work on it") < text.index("1.2345") < text.index("stopped after step 30 of 40")
