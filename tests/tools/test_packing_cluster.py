"""Packing by a Dask cluster: real schedulers, real workers, real kills, and the same bytes as without."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import alexshard
import pytest
import yaml
from alexshard.tools.packing import Refusal
from alexshard.tools.packing.cluster_task import Counted, Told
from hypothesis import given
from hypothesis.strategies import booleans, integers, lists

from tests.conftest import alexshard as command
from tests.conftest import run
from tests.tools.drawn import files_of, folders, ilsvrc, jpeg, named_images

ROOT = Path(alexshard.__file__).parent
PAGE = (ROOT / "docs" / "cluster.md").read_text(encoding="utf-8")
OPTIONS = ("--samples-per-shard", "5")
PATIENCE_S = 120.0  # until a test that waits for something gives up


def until(what: Callable[[], object], process: subprocess.Popen[str] | None = None) -> None:
    """Wait for something that processes will do; what is waited for is counted, the clock only ends a failure."""
    give_up = time.monotonic() + PATIENCE_S
    while not what():
        if time.monotonic() > give_up or (process is not None and process.poll() is not None):
            told = process.communicate()[1] if process is not None and process.poll() is not None else ""
            raise AssertionError(f"it never happened\n{told}")
        time.sleep(0.01)


@dataclass
class DaskCluster:
    """A scheduler and workers, as processes of their own."""

    folder: Path
    address: str = ""
    workers: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)  # name to process
    scheduler: subprocess.Popen[bytes] | None = None

    def start(self, *arguments: str, name: str, env: dict[str, str] | None = None) -> subprocess.Popen[bytes]:
        with (self.folder / f"{name}.log").open("wb") as log:
            return subprocess.Popen(
                [*arguments], stdout=log, stderr=log, cwd=self.folder, env={**os.environ, **(env or {})}
            )

    def log(self, name: str) -> str:
        return (self.folder / f"{name}.log").read_text(encoding="utf-8", errors="replace")

    def start_scheduler(self, env: dict[str, str] | None = None) -> None:
        contact = self.folder / "scheduler.json"
        self.scheduler = self.start(
            *dask("scheduler", "--host", "127.0.0.1", "--port", "0", "--no-dashboard"),
            *("--dashboard-address", "127.0.0.1:0", "--scheduler-file", str(contact)),
            name="scheduler",
            env=env,
        )
        until(lambda: contact.exists() and contact.read_text())
        self.address = json.loads(contact.read_text())["address"]

    def start_worker(
        self, name: str, *options: str, prefix: tuple[str, ...] = (), env: dict[str, str] | None = None
    ) -> None:
        self.workers[name] = self.start(
            *prefix,
            *dask("worker", self.address, "--no-nanny", "--no-dashboard", "--memory-limit", "0"),
            *("--host", "127.0.0.1", "--name", name, "--local-directory", str(self.folder / f"scratch-{name}")),
            *(options or ("--nthreads", "1")),
            name=name,
            env=env,
        )
        until(lambda: "Registered to" in self.log(name))

    def stop_worker(self, name: str, number: signal.Signals = signal.SIGKILL) -> None:
        process = self.workers.pop(name)
        process.send_signal(number)
        process.wait()
        # The scheduler has noticed when it has logged it; until then it would hand out work for the dead.
        address = re.findall(r"Start worker at: *(\S+)", self.log(name))[-1]
        until(lambda: f"Remove worker addr: {address}" in self.log("scheduler"))

    def stop(self) -> None:
        for process in [*self.workers.values(), *([self.scheduler] if self.scheduler else [])]:
            process.kill()
            process.wait()


def dask(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "dask", *arguments]


@contextmanager
def dask_cluster(folder: Path, *, env: dict[str, str] | None = None, **workers: int) -> Iterator[DaskCluster]:
    """A scheduler, with an environment, and workers of so many threads."""
    folder.mkdir()
    cluster = DaskCluster(folder)
    try:
        cluster.start_scheduler(env)
        for name, threads in workers.items():
            cluster.start_worker(name, "--nthreads", str(threads))
        yield cluster
    finally:
        cluster.stop()


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DaskCluster]:
    """One worker of one thread, one of two: what threads of one process do is tested by every build here."""
    with dask_cluster(tmp_path_factory.mktemp("dask") / "cluster", one=1, two=2) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def local_set(sample_source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    dest = tmp_path_factory.mktemp("local") / "set"
    run(*command("build", sample_source, "--out", dest, *OPTIONS))
    return dest


def build(
    source: Path | str,
    out: Path | str,
    scheduler: str,
    *options: str,
    cwd: Path | None = None,
    patience: str = "30s",
) -> subprocess.Popen[str]:
    """The command with a cluster, started; `patience` is Dask's, with a scheduler that does not answer."""
    return subprocess.Popen(
        command("build", source, "--out", out, "--scheduler", scheduler, *options),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=cwd,
        env={**os.environ, "DASK_DISTRIBUTED__COMM__TIMEOUTS__CONNECT": patience},
    )


def ended(process: subprocess.Popen[str]) -> tuple[int, str]:
    """Exit code and stderr."""
    try:
        _, told = process.communicate(timeout=PATIENCE_S)
    finally:
        process.kill()
    return process.returncode, told


def finished(out: Path) -> list[str]:
    """Shards that an unfinished build has finished."""
    return sorted(path.stem for path in (out / ".build").glob("t*-*.json"))


# --- the same bytes


IN_HAND_OF_THE_LOST = """
import json, sys
from distributed import Client
events = [event for _, event in Client(sys.argv[1]).get_events("all")]
removed = [event for event in events if event["action"] == "remove-worker"]
print(json.dumps(sorted(shard for event in removed for shard in event["processing-tasks"])))
"""


def test_a_cluster_packs_the_same_bytes(cluster, sample_source, local_set, tmp_path):
    """Also where source and output are given relative to a folder that no worker runs in."""
    source, out = (os.path.relpath(path, tmp_path) for path in (sample_source, tmp_path / "set"))

    code, told = ended(build(source, out, cluster.address, *OPTIONS, cwd=tmp_path))

    assert code == 0, told
    assert files_of(tmp_path / "set") == files_of(local_set)
    assert f"cluster {cluster.address}: 2 workers, 3 threads; dashboard http://127.0.0.1:" in told
    assert "build 240/240 images" in told


def test_a_worker_killed_midway_changes_nothing(sample_source, local_set, tmp_path):
    with dask_cluster(tmp_path / "cluster", stays=1, dies=1) as cluster:
        process = build(sample_source, tmp_path / "set", cluster.address, *OPTIONS)
        until(lambda: len(finished(tmp_path / "set")) >= 3, process)
        cluster.stop_worker("dies")
        code, told = ended(process)
        in_hand = json.loads(run(sys.executable, "-c", IN_HAND_OF_THE_LOST, cluster.address))

    assert in_hand != [], "it was killed when it had nothing to do"
    assert code == 0, told
    assert files_of(tmp_path / "set") == files_of(local_set)
    assert "build 240/240 images" in told, "what it had begun is counted once"


def test_a_worker_that_joins_later_is_used(sample_source, local_set, tmp_path):
    with dask_cluster(tmp_path / "cluster", first=1) as cluster:
        process = build(sample_source, tmp_path / "set", cluster.address, *OPTIONS)
        until(lambda: finished(tmp_path / "set"), process)
        cluster.workers["first"].send_signal(signal.SIGSTOP)  # so that something is left for the other
        cluster.start_worker("second")
        cluster.stop_worker("first")
        code, told = ended(process)

    assert code == 0, told
    assert files_of(tmp_path / "set") == files_of(local_set)


@given(
    refused=lists(booleans(), max_size=12),
    attempts=lists(lists(integers(0, 12), max_size=4), max_size=4),
)
def test_each_image_and_refusal_is_told_once_however_often_a_shard_is_begun(refused, attempts):
    """Every attempt tells at some of its images; the last one comes to the end."""
    wanted = [Refusal("train", "x.tar", f"{i}.jpg", "empty") for i, is_bad in enumerate(refused) if is_bad]
    counted, images, refusals = Counted(), 0, []
    for stops in [*attempts, [len(refused)]]:
        told_before = 0
        for stop in sorted({min(stop, len(refused)) for stop in stops}):
            so_far = sum(refused[:stop])
            told = Told("train-000000.tar", "tcp://w:1", stop, told_before, tuple(wanted[told_before:so_far]))
            new_images, new_refusals = counted.news(Told.parse(told.message()))
            images, told_before = images + new_images, so_far
            refusals.extend(new_refusals)
            assert len(refusals) <= len(wanted)

    assert (images, refusals) == (len(refused), wanted)


# --- stopped and continued


def test_ctrl_c_keeps_what_is_finished_and_another_cluster_or_none_continues(
    cluster, sample_source, local_set, tmp_path
):
    out = tmp_path / "set"
    process = build(sample_source, out, cluster.address, *OPTIONS)
    until(lambda: len(finished(out)) >= 5, process)
    process.send_signal(signal.SIGINT)
    code, told = ended(process)
    kept = {name: (out / ".build" / f"{name}.tar").stat().st_ino for name in finished(out)}

    assert code == 130, told
    assert 5 <= len(kept) < 48
    assert not list((out / ".build").glob("cluster-*"))
    run(*command("build", sample_source, "--out", out, *OPTIONS))
    assert files_of(out) == files_of(local_set)
    assert {name: (out / f"{name}.tar").stat().st_ino for name in kept} == kept


def test_workers_let_go_of_the_shards_of_a_killed_command_and_the_next_one_continues(
    cluster, sample_source, local_set, tmp_path
):
    out = tmp_path / "set"
    process = build(sample_source, out, cluster.address, *OPTIONS)
    until(lambda: len(finished(out)) >= 3, process)
    process.kill()
    process.communicate()
    [left] = (out / ".build").glob("cluster-*")

    code, told = ended(build(sample_source, out, cluster.address, *OPTIONS))

    assert code == 0, told
    assert not left.exists()
    assert files_of(out) == files_of(local_set)


def test_a_scheduler_that_goes_away_ends_the_build_and_the_same_command_continues(
    cluster, sample_source, local_set, tmp_path
):
    out = tmp_path / "set"
    with dask_cluster(tmp_path / "cluster", one=1) as lost:
        process = build(sample_source, out, lost.address, *OPTIONS)
        until(lambda: len(finished(out)) >= 3, process)
        lost.scheduler.kill()
        code, told = ended(process)
    kept = {name: (out / ".build" / f"{name}.tar").stat().st_ino for name in finished(out)}

    assert (code, kept != {}) == (1, True), told
    assert "error: the Dask scheduler went away" in told
    assert f"where: {lost.address}" in told
    assert "Traceback" not in told
    code, told = ended(build(sample_source, out, cluster.address, *OPTIONS))
    assert code == 0, told
    assert files_of(out) == files_of(local_set)
    assert {name: (out / f"{name}.tar").stat().st_ino for name in kept} == kept


# --- what ends a build


def test_a_bad_image_is_counted_as_it_is_met_and_too_many_end_the_build(cluster, tmp_path):
    images = named_images(8)
    for synset in images:
        images[synset][2] = (f"{synset}_2.JPEG", b"text")
    source = ilsvrc(tmp_path / "source", images)

    options = ("--size", "32", *OPTIONS)

    code, told = ended(build(source, tmp_path / "set", cluster.address, "--max-bad", "1", *options))
    allowed = build(source, tmp_path / "set", cluster.address, "--max-bad", "3", *options)

    assert code == 1
    assert "error: 2 bad images so far, and of 28 at most 1 may be (--max-bad 1):" in told
    assert ended(allowed)[0] == 0
    run(*command("build", source, "--out", tmp_path / "local", "--max-bad", "3", *options))
    assert files_of(tmp_path / "set") == files_of(tmp_path / "local")


def test_an_error_of_a_shard_ends_the_build_in_its_own_words(cluster, tmp_path):
    """An image that was listed is gone when its shard is packed."""
    source = folders(tmp_path / "source", {c: {f"{i}.jpg": jpeg(i) for i in range(20)} for c in ("cat", "dog")})
    code = (
        "import pathlib, sys\n"
        "from alexshard.tools import packing\n"
        "plan_build = packing.plan_build\n"
        "def planned(*arguments, **named):\n"
        "    plan = plan_build(*arguments, **named)\n"
        "    pathlib.Path(sys.argv[2], 'dog', '7.jpg').unlink()\n"
        "    return plan\n"
        "packing.plan_build = planned\n"
        "from alexshard.tools.cli_alexshard import main\n"
        "main()"
    )
    options = ("--out", str(tmp_path / "set"), "--size", "32", "--scheduler", cluster.address)
    done = subprocess.run(
        [sys.executable, "-c", code, "build", str(source), *options], capture_output=True, text=True, check=False
    )

    assert done.returncode == 1
    assert "error: the source changed or fails while it is packed" in done.stderr
    assert re.search(rf"where: {source}.*7\.jpg", done.stderr)


def test_a_worker_that_hangs_is_named_with_its_shard_and_image(sample_source, tmp_path):
    out = tmp_path / "set"
    with dask_cluster(tmp_path / "cluster", hangs=1) as cluster:
        process = build(sample_source, out, cluster.address, *OPTIONS, "--hung-after", "3")
        until(lambda: finished(out), process)
        cluster.workers["hangs"].send_signal(signal.SIGSTOP)
        code, told = ended(process)

    assert code == 1
    assert "error: a worker hangs: no image was finished for 3 s" in told, told
    assert re.search(r"where: train-\d{6}\.tar, .*, worker tcp://127\.0\.0\.1:\d+\n", told)
    assert finished(out)


def test_a_shard_that_its_workers_die_of_ends_the_build(sample_source, tmp_path):
    """A scheduler that forgives no death stands for the usual one, which forgives three."""
    forgiving = {"DASK_DISTRIBUTED__SCHEDULER__ALLOWED_FAILURES": "0"}
    with dask_cluster(tmp_path / "cluster", env=forgiving, dies=1) as cluster:
        process = build(sample_source, tmp_path / "set", cluster.address, *OPTIONS)
        until(lambda: finished(tmp_path / "set"), process)
        cluster.stop_worker("dies")
        code, told = ended(process)

    assert code == 1
    assert re.search(r"error: 1 worker died while it had (train|val|test)-\d{6}\.tar\n", told)
    assert re.search(r"where: worker tcp://127\.0\.0\.1:\d+, the last\n", told)


def test_a_cluster_without_workers_is_waited_for_and_then_an_error(sample_source, tmp_path):
    with dask_cluster(tmp_path / "cluster") as cluster:
        code, told = ended(build(sample_source, tmp_path / "set", cluster.address, "--hung-after", "1"))

    assert code == 1
    assert "0 workers, 0 threads" in told
    assert "waiting for workers, 1 s at most" in told
    assert "error: the cluster has had no worker for 1 s" in told
    assert not (tmp_path / "set").exists()


def test_no_scheduler_is_an_error_and_no_address_a_wrong_call(sample_source, tmp_path):
    nobody = build(sample_source, tmp_path / "set", "tcp://127.0.0.1:1", patience="1s")
    wrong = build(sample_source, tmp_path / "set", "node01")
    both = build(sample_source, tmp_path / "set", "tcp://127.0.0.1:1", "-j", "2")
    (code, told), (wrong_code, wrong_told), (both_code, both_told) = map(ended, (nobody, wrong, both))

    assert (code, wrong_code, both_code) == (1, 2, 2)
    assert "error: no Dask scheduler answers" in told
    assert "error: --scheduler 'node01' is no address of a Dask scheduler" in wrong_told
    assert "error: -j is of processes on this machine" in both_told
    assert not (tmp_path / "set").exists()


# --- workers that are not as we are


@pytest.fixture
def other_version(tmp_path: Path) -> dict[str, str]:
    """The environment of a worker that has another alexshard: this one under another version's number."""
    other = tmp_path / "elsewhere" / "alexshard"
    other.mkdir(parents=True)
    for part in ("shards", "pipeline", "trainer", "tools"):
        (other / part).symlink_to(ROOT / part)
    (other / "__init__.py").write_text("__version__ = '0.0.7'\n", encoding="utf-8")
    return {"PYTHONPATH": str(other.parent)}


OTHER_VERSION = f"error: a worker has other versions: alexshard 0.0.7 there, {alexshard.__version__} here\n"


def test_a_worker_of_another_version_is_refused_and_named(cluster, sample_source, tmp_path, other_version):
    cluster.start_worker("other", env=other_version)
    try:
        code, told = ended(build(sample_source, tmp_path / "set", cluster.address))
    finally:
        cluster.stop_worker("other")

    assert code == 1
    assert OTHER_VERSION in told
    assert re.search(r"where: worker tcp://127\.0\.0\.1:\d+ \(.+\)\n", told)
    assert not (tmp_path / "set").exists()


def test_a_worker_of_another_version_that_joins_later_packs_nothing(sample_source, tmp_path, other_version):
    with dask_cluster(tmp_path / "cluster", first=1) as cluster:
        process = build(sample_source, tmp_path / "set", cluster.address, *OPTIONS)
        until(lambda: finished(tmp_path / "set"), process)
        cluster.workers["first"].send_signal(signal.SIGSTOP)  # so that something is left for the other
        cluster.start_worker("other", env=other_version)
        code, told = ended(process)

    assert code == 1
    assert OTHER_VERSION in told
    assert re.search(r"where: worker tcp://127\.0\.0\.1:\d+ \(.+\), which joined later\n", told)


@pytest.mark.parametrize("hidden", ["source", "output"])
def test_a_worker_that_does_not_see_a_folder_is_refused_and_named(cluster, sample_source, tmp_path, hidden):
    """The worker lives in a mount namespace of its own, in which the folder is an empty one."""
    out, empty = tmp_path / "sets" / "set", tmp_path / "empty"
    out.parent.mkdir()
    empty.mkdir()
    folder = {"source": sample_source, "output": out.parent}[hidden]
    hide = f'mount --bind {shlex.quote(str(empty))} {shlex.quote(str(folder))} && exec "$@"'
    apart = ("unshare", "--user", "--map-root-user", "--mount", "sh", "-c", hide, "sh")
    if (
        not shutil.which("unshare")
        or subprocess.run([*apart, "true"], capture_output=True, check=False).returncode
    ):
        pytest.skip(
            "NO MOUNT NAMESPACES: this machine lets nobody hide a folder from one process (unshare --mount)"
        )
    cluster.start_worker("blind", prefix=apart)
    try:
        code, told = ended(build(sample_source, out, cluster.address))
    finally:
        cluster.stop_worker("blind")

    assert code == 1
    assert "error: a worker does not see what this machine sees: it cannot" in told
    assert str(folder) in told
    assert re.search(r"where: worker tcp://127\.0\.0\.1:\d+\n", told)
    assert finished(out) == []


# --- the page


def shell_blocks() -> list[str]:
    return re.findall(r"```sh\n(.*?)```", PAGE, re.DOTALL)


def test_every_shell_block_of_the_page_is_one():
    assert len(shell_blocks()) == 5
    for block in shell_blocks():
        subprocess.run(["bash", "-n"], input=block, text=True, check=True)


@pytest.mark.parametrize("name", ["scheduler", "worker", "ssh"])
def test_every_option_that_the_page_gives_dask_exists(name):
    known = set(re.findall(r"--[a-z-]+", run(*dask(name, "--help"))))
    lines = (
        PAGE.replace("[dask, worker,", "dask worker").replace("[dask, scheduler,", "dask scheduler").splitlines()
    )
    used = [option for line in lines if f"dask {name} " in line for option in re.findall(r"--[a-z-]+", line)]

    assert len(used) >= 2
    assert set(used) <= known


def test_every_option_that_the_page_gives_alexshard_exists():
    known = set(re.findall(r"--[a-z-]+", run(*command("build", "--help"))))
    used = {
        option
        for line in PAGE.splitlines()
        if "alexshard build" in line
        for option in re.findall(r"--[a-z-]+", line)
    }

    assert {"--out", "--scheduler"} == used
    assert used <= known


def test_the_manifests_of_the_page_fit_together():
    manifests = list(yaml.safe_load_all(re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)[0]))
    service, scheduler, worker, job = manifests
    pods = {m["metadata"]["name"]: m["spec"]["template"]["spec"] for m in (scheduler, worker, job)}
    addresses = {
        word for pod in pods.values() for word in pod["containers"][0]["args"] if word.startswith("tcp://")
    }

    assert [m["kind"] for m in manifests] == ["Service", "Deployment", "Deployment", "Job"]
    assert addresses == {f"tcp://{service['metadata']['name']}:{service['spec']['ports'][0]['port']}"}
    for deployment in (scheduler, worker):
        labels = deployment["spec"]["template"]["metadata"]["labels"]
        assert deployment["spec"]["selector"]["matchLabels"] == labels
    assert service["spec"]["selector"] == scheduler["spec"]["selector"]["matchLabels"]
    assert {name: [v["name"] for v in pod.get("volumes", [])] for name, pod in pods.items()} == {
        "dask-scheduler": [],
        "dask-worker": ["imagenet"],
        "alexshard-build": ["imagenet"],
    }
    rule = job["spec"]["podFailurePolicy"]["rules"][0]["onExitCodes"]
    assert (rule["containerName"], rule["values"]) == (pods["alexshard-build"]["containers"][0]["name"], [2])
