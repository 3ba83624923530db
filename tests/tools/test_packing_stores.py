"""Shard sets in object stores: whole files, patience with faults, uploads beside packing, one build at a time.

Against a real S3 server on loopback, and a folder as the store of plain files.
"""

from __future__ import annotations

import importlib.util
import os
import resource
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from alexshard.shards import AlexshardError, Patience, ShardName, Split, WrongCall, is_address, local_name, masked
from alexshard.tools.packing import prefix, publish, source_at
from alexshard.tools.packing.prefix import BEAT_S, DEAD_S, MARK_NAME, Mark, check_prefix
from alexshard.tools.packing.publish import Publisher, publishing
from alexshard.tools.packing.stores import Store

from tests.conftest import alexshard, run
from tests.s3_server import S3, Cut, CutRequest, Hold, Slow, Spoil, Status, Unheard
from tests.tools.drawn import WNIDS, files_of, ilsvrc, jpeg, named_images, pack

QUICK = (0.01, 0.01, 0.01, 0.01)
BIG = os.urandom(1 << 20) * 20  # sent in three parts


@pytest.fixture
def s3_here(s3: S3, monkeypatch: pytest.MonkeyPatch) -> S3:
    """The server, for stores opened in this process."""
    for name, value in s3.environment.items():
        monkeypatch.setenv(name, value)
    return s3


@pytest.fixture
def big(tmp_path: Path) -> Path:
    path = tmp_path / "big.tar"
    path.write_bytes(BIG)
    return path


def opened(s3: S3, prefix: str = "sets/a") -> Store:
    return Store(s3.url(prefix), pauses=QUICK)


@pytest.mark.parametrize("fault", [Status(500, times=2), Status(503), CutRequest(99), Cut(0), Slow(0.1)])
@pytest.mark.parametrize("size", [1000, len(BIG)], ids=["one piece", "parts"])
def test_an_upload_meets_faults_and_is_whole_in_the_end(s3_here, tmp_path, fault, size):
    store, file = opened(s3_here), tmp_path / "x"
    file.write_bytes(BIG[:size])
    fault = replace(fault, method="PUT")
    s3_here.proxy.add(fault)

    stored = store.put(file, "train-000000.tar")

    assert stored.bytes == size
    assert s3_here.server.objects("sets/a") == {"train-000000.tar": BIG[:size]}
    assert s3_here.server.unfinished_uploads() == []
    assert fault.times == 0


def test_bytes_spoilt_on_the_way_are_found_by_their_sum_and_sent_again(s3_here, big):
    store = opened(s3_here)
    store.put_bytes("probe", b"shows that an ETag is an MD5 here")
    s3_here.proxy.add(Spoil(method="PUT", key="small"), Spoil(method="PUT", key="big", skip=1))
    small = big.with_name("small")
    small.write_bytes(b"abc")

    store.put(small, "small")
    store.put(big, "big")

    assert s3_here.server.get("sets/a/small") == b"abc"
    assert s3_here.server.get("sets/a/big") == BIG
    assert len(s3_here.proxy.seen("PUT", "small")) == 2


def test_what_does_not_get_better_ends_with_one_message(s3_here, big):
    store = opened(s3_here)
    s3_here.proxy.add(Status(500, times=1000, key="train"))

    with pytest.raises(AlexshardError, match=r"cannot upload s3://bucket-\S+/sets/a/train-000000.tar") as failed:
        store.put(big, "train-000000.tar")
    assert failed.value.exit_code == 1
    assert "run the same command again" in str(failed.value)
    s3_here.proxy.clear()
    assert s3_here.server.keys() == []


def test_a_server_that_never_answers_is_given_up(s3_here):
    store = Store(s3_here.url("sets/a"), pauses=(0.01,), answer_s=0.2)
    hold = Hold(times=1000)
    s3_here.proxy.add(hold)

    with pytest.raises(AlexshardError, match="cannot write"):
        store.put_bytes("x", b"y")
    assert hold.times < 1000


@pytest.mark.parametrize(
    ("address", "code", "said"),
    [
        ("s3://no-such-bucket/a", 2, "there is no bucket no-such-bucket"),
        ("s3://key:very-secret@bucket/a", 2, "holds credentials"),
        ("s3://key:x/very-secret@bucket/a", 2, "holds credentials"),
        ("s3:///a", 2, "names no bucket"),
        ("s3://No_Bucket/a", 2, "No_Bucket"),
        ("s4://bucket/a", 2, "Protocol not known: s4"),
    ],
)
def test_a_wrong_address_is_told_before_anything_is_sent(s3_here, address, code, said):
    with pytest.raises(AlexshardError, match=said) as wrong:
        Store(address, pauses=QUICK).listing()
    assert wrong.value.exit_code == code
    assert "very-secret" not in str(wrong.value)
    assert s3_here.proxy.seen("PUT") == []


def test_a_missing_permission_is_told_and_not_tried_again(s3_here):
    store = opened(s3_here)
    s3_here.proxy.add(Status(403, times=1000))

    for action in (store.listing, lambda: store.put_bytes("x", b"")):
        with pytest.raises(WrongCall, match="may not"):
            action()
    assert len(s3_here.proxy.seen()) == 2


def test_missing_credentials_are_told(s3_here, monkeypatch):
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")

    with pytest.raises(WrongCall, match="Unable to locate credentials"):
        opened(s3_here).listing()


def test_a_server_that_is_not_there_is_told(s3_here, monkeypatch):
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{nobody.getsockname()[1]}")
        with pytest.raises(AlexshardError, match="cannot be reached") as failed:
            opened(s3_here).listing()
    assert failed.value.exit_code == 1
    assert "AWS_ENDPOINT_URL" in failed.value.remedy


def test_the_endpoint_of_s3_is_no_remedy_for_another_store():
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        with pytest.raises(AlexshardError, match="cannot be reached") as failed:
            Store(f"http://127.0.0.1:{nobody.getsockname()[1]}/foo", pauses=()).listing()

    assert "AWS" not in failed.value.remedy


def test_a_missing_extra_is_told():
    told = run(sys.executable, "-c", WITHOUT_S3FS)

    assert "s3://bucket/a needs a library that is not installed" in told
    assert "what to do: pip install '.[s3]' in the clone of alexshard" in told


WITHOUT_S3FS = """
import sys
sys.modules["s3fs"] = None
from alexshard.tools.packing.stores import Store, WrongCall
try:
    Store("s3://bucket/a")
except WrongCall as error:
    print(error)
"""


def test_passwords_and_tokens_of_an_address_reach_no_message(tmp_path):
    address = "sftp://me:pa55word@127.0.0.1:1/sets?token=t0ken"

    assert masked(address) == "sftp://***@127.0.0.1:1/sets?***"
    assert local_name(address) == local_name(address.replace("pa55word", "another").replace("t0ken", "new"))
    with pytest.raises(AlexshardError) as failed:
        Store(address, pauses=QUICK).listing()

    def refuse() -> None:
        raise PermissionError("no me:pa55word, t0ken")

    with pytest.raises(AlexshardError) as refused:
        Patience(address).run("read", "a", refuse)
    for message in (str(failed.value), str(refused.value)):
        assert "pa55word" not in message
        assert "t0ken" not in message
    assert "may not read sftp://***@127.0.0.1:1/sets?***/a: no ***, ***" in str(refused.value)


@pytest.mark.parametrize(
    ("address", "error", "told"),
    [
        ("s3://b/a", "Is it there? status 404 in region x", "Is it there? status 404 in region x"),
        ("s3://b/a", "no https://h/a?key=1 to be had?", "no https://h/a?*** to be had?"),
        ("sftp://me:p%40ss@host/a", "login me:p%40ss, p@ss refused", "login ***, *** refused"),
        ("sftp://me:pa/ss@host/a", "no pa/ss at sftp://me:pa/ss@host", "no *** at sftp://***@host"),
    ],
)
def test_a_librarys_words_stay_but_for_secrets(address, error, told):
    assert Patience(address).said(OSError(error)) == told


@pytest.mark.parametrize(
    ("address", "shown"),
    [
        ("sftp://me:pa/s@host:22/a", "sftp://***@host:22/a"),
        ("https://host:8080/a@b", "https://host:8080/a@b"),
        ("s3://bucket/a@b:c", "s3://bucket/a@b:c"),
    ],
)
def test_a_password_may_hold_slashes_and_a_path_an_at(address, shown):
    assert masked(address) == shown


@pytest.mark.parametrize("text", ["simplecache::s3://bucket/a", "s3:/bucket/a", "file:/a", "S3:/b"])
def test_what_is_nearly_an_address_is_neither_a_folder_nor_a_source(text, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for named in (lambda: publish.destination(text, None), lambda: source_at(text)):
        with pytest.raises(WrongCall, match="is no address of a store"):
            named()
    (tmp_path / text.partition("/")[0]).mkdir()
    assert publish.destination(text, None) == (Path(text), None)
    assert source_at(f"./{text}") == Path(text)


def test_only_a_scheme_makes_an_address():
    assert [is_address(text) for text in ("gs://b/p", "file:///x", "/data/x:y", "C:/x", "a//b", "://")] == [
        True, True, False, False, False, False,
    ]  # fmt: skip


def test_a_plain_file_appears_whole_and_an_upload_that_fails_leaves_nothing(tmp_path, big):
    store = Store(f"file://{tmp_path}/store/a", pauses=QUICK)

    stored = store.put(big, "train-000000.tar")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, limits[1]))  # the disk is full after a megabyte
    try:
        with pytest.raises(AlexshardError, match="cannot upload"):
            store.put(big, "train-000001.tar")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)

    assert store.listing() == {"train-000000.tar": stored}
    assert (tmp_path / "store" / "a" / "train-000000.tar").read_bytes() == BIG
    assert [path.name for path in (tmp_path / "store" / "a").iterdir()] == ["train-000000.tar"]


# Publishing ----------------------------------------------------------------------------------------------------


def shard(work: Path, number: int, size: int = 2000) -> ShardName:
    """A file that is named as a shard is."""
    name = ShardName(Split.TRAIN, number)
    work.mkdir(exist_ok=True)
    (work / str(name)).write_bytes(bytes([number]) * size)
    (work / name.index_name).write_bytes(b"index %d" % number)
    return name


def finished(work: Path, publisher: Publisher, names: dict[ShardName, ShardName]) -> None:
    folder = work.parent / "set"
    folder.mkdir(exist_ok=True)
    (folder / "samples.tsv").write_bytes(b"rows")
    (folder / "manifest.json").write_bytes(b"{}")
    publisher.finish(folder, names)


def test_shards_are_uploaded_and_dropped_while_packing_goes_on_and_the_manifest_is_last(s3_here, tmp_path):
    work = tmp_path / "work"
    with publishing(opened(s3_here), work, plan="p", restart=False) as publisher:
        names = [shard(work, number) for number in range(8)]
        for name in names:
            publisher.offer(name)
        publisher.drain()
        left = sorted(path.name for path in work.glob("*.tar"))
        before = set(s3_here.server.objects("sets/a"))
        finished(work, publisher, {name: name for name in names})

    assert left == []
    assert "manifest.json" not in before
    assert {f"train-{number:06d}.{end}" for number in range(8) for end in ("tar", "idx")} <= before
    there = s3_here.server.objects("sets/a")
    assert set(there) == before - {MARK_NAME} | {"samples.tsv", "manifest.json"}
    assert there["train-000005.tar"] == bytes([5]) * 2000
    written = [seen.path.rpartition("/")[2] for seen in s3_here.proxy.seen("PUT")]
    assert written[-1] == "manifest.json"


def test_a_slow_store_holds_the_build_up_instead_of_filling_the_disk(s3_here, tmp_path):
    hold = Hold(times=1000, method="PUT", key="train-")
    s3_here.proxy.add(hold)
    offered = []

    def offer_all(publisher: Publisher) -> None:
        with suppress(AlexshardError):
            for number in range(20):
                publisher.offer(shard(tmp_path / "work", number))
                offered.append(number)

    with publishing(opened(s3_here), tmp_path / "work", plan="p", restart=False) as publisher:
        build = threading.Thread(target=offer_all, args=(publisher,))
        build.start()
        assert hold.reached.wait(30)
        build.join(0.5)  # may take as long as it likes, it does not get further
        assert build.is_alive()
        waiting = len(offered)
        s3_here.proxy.clear()
        build.join(60)

    assert waiting <= 2 * publish.UPLOADS
    assert len(offered) == 20


def test_an_upload_that_fails_ends_the_build(s3_here, tmp_path):
    s3_here.proxy.add(Status(500, times=1000, method="PUT", key="train-000001.tar"))

    with (
        pytest.raises(AlexshardError, match=r"cannot upload s3://\S+/train-000001.tar"),
        publishing(opened(s3_here), tmp_path / "work", plan="p", restart=False) as publisher,
    ):
        for number in range(20):
            publisher.offer(shard(tmp_path / "work", number))
        publisher.drain()

    mark = Mark.parse(s3_here.server.get("sets/a/" + MARK_NAME))
    assert mark is not None
    assert not mark.is_held()
    assert (tmp_path / "work" / "train-000001.tar").exists()


def test_what_the_store_holds_as_it_was_sent_is_not_sent_again(s3_here, tmp_path):
    work = tmp_path / "work"
    with publishing(opened(s3_here), work, plan="p", restart=False) as publisher:
        names = [shard(work, number) for number in range(4)]
        for name in names:
            publisher.offer(name)
        publisher.drain()
    s3_here.server.delete("sets/a/train-000001.tar")
    s3_here.server.put("sets/a/train-000002.tar", bytes([2]) * 1999 + b"x")

    with publishing(opened(s3_here), work, plan="p", restart=False) as publisher:
        held = [publisher.holds(name) for name in names]

    assert held == [True, False, False, True]


@pytest.mark.parametrize(
    "fault", [{"key": "train-000002.idx", "skip": 1}, {"key": "manifest.json"}], ids=["moving", "moved"]
)
def test_numbers_that_shift_are_moved_to_their_final_names_also_in_two_goes(s3_here, tmp_path, fault):
    work = tmp_path / "work"
    names = [ShardName(Split.TRAIN, number) for number in range(4)]
    final = {names[0]: names[0], names[2]: names[1], names[3]: names[2]}
    s3_here.proxy.add(Status(500, times=1000, method="PUT", **fault))
    with (
        pytest.raises(AlexshardError, match=f"cannot .* s3://.*{fault['key']}"),
        publishing(opened(s3_here), work, plan="p", restart=False) as publisher,
    ):
        for number in (0, 2, 3):
            publisher.offer(shard(work, number))
        publisher.drain()
        finished(work, publisher, final)
    assert "manifest.json" not in s3_here.server.objects("sets/a")
    s3_here.proxy.clear()
    with publishing(opened(s3_here), work, plan="p", restart=False) as publisher:
        held = [publisher.holds(name) for name in final]
        finished(work, publisher, final)

    assert held == [True, True, True]
    there = s3_here.server.objects("sets/a")
    assert {name: data[:1] for name, data in there.items() if name.endswith(".tar")} == {
        "train-000000.tar": bytes([0]),
        "train-000001.tar": bytes([2]),
        "train-000002.tar": bytes([3]),
    }
    assert there["train-000002.idx"] == b"index 3"
    assert "train-000003.idx" not in there


def test_objects_changed_behind_the_builds_back_keep_the_manifest_away(s3_here, tmp_path):
    work = tmp_path / "work"
    with (
        pytest.raises(AlexshardError, match=r"no longer has what it was sent: train-000000.tar"),
        publishing(opened(s3_here), work, plan="p", restart=False) as publisher,
    ):
        name = shard(work, 0)
        publisher.offer(name)
        publisher.drain()
        s3_here.server.put("sets/a/train-000000.tar", b"other")
        finished(work, publisher, {name: name})
    assert "manifest.json" not in s3_here.server.objects("sets/a")


def test_leftovers_of_ours_are_aborted_and_those_of_others_are_not(s3_here, tmp_path):
    s3_here.server.begin_upload("sets/a/train-000000.tar")
    s3_here.server.begin_upload("sets/a/theirs.bin")
    s3_here.server.begin_upload("sets/ab/train-000000.tar")

    with publishing(opened(s3_here), tmp_path, plan="p", restart=False):
        left = s3_here.server.unfinished_uploads()

    assert sorted(left) == ["sets/a/theirs.bin", "sets/ab/train-000000.tar"]


@pytest.mark.parametrize("store", ["s3", "file"])
def test_a_prefix_with_other_things_is_refused(s3_here, tmp_path, store):
    address = s3_here.url("sets/a") if store == "s3" else f"file://{tmp_path}/a"
    for name in ("train-000000.tar", "folder/x"):
        foreign = Store(address, pauses=QUICK)
        foreign.put_bytes(name, b"theirs")
        with pytest.raises(WrongCall, match=f"holds other things: {name[:6]}"):
            check_prefix(foreign)
        foreign.remove(name)
    assert check_prefix(Store(address, pauses=QUICK)) is None


# Two builds on one prefix -------------------------------------------------------------------------------------

ELSEWHERE = Mark("p", "elsewhere", 7, "2026-01-01T00:00:00+00:00", "2026-01-01T00:00:00+00:00", "there", "t")
HERE = replace(Mark.mine("p"), since=ELSEWHERE.since, beat=ELSEWHERE.beat)  # of this process in an earlier life


def ago(seconds: float) -> str:
    """A sign of life of so long ago."""
    return (datetime.now(UTC) - timedelta(seconds=seconds)).isoformat(timespec="seconds")


def taken(s3: S3, tmp_path: Path, mark: Mark, *, restart: bool = False) -> Mark:
    """The mark of a build that comes upon another's."""
    s3.server.put("sets/a/" + MARK_NAME, mark.data())
    s3.server.put("sets/a/train-000009.tar", b"of the other")
    with publishing(opened(s3), tmp_path, plan="p", restart=restart):
        mine = Mark.parse(s3.server.get("sets/a/" + MARK_NAME))
        assert mine is not None
        return mine


def test_a_second_build_is_told_who_is_at_work(s3_here, tmp_path):
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as alive:
        here = replace(HERE, pid=alive.pid)
        beating = replace(ELSEWHERE, beat=ago(0))
        for mark, restart in ((here, False), (here, True), (beating, False)):
            with pytest.raises(WrongCall, match=f"process {mark.pid} on {mark.host}, since 2026-01-01T00"):
                taken(s3_here, tmp_path, mark, restart=restart)
        alive.communicate(b"\n")

    assert taken(s3_here, tmp_path, here).pid == os.getpid()


def test_a_holder_without_a_sign_of_life_gives_way_and_one_on_another_host_to_restart(s3_here, tmp_path):
    assert taken(s3_here, tmp_path, ELSEWHERE).pid == os.getpid()
    assert "train-000009.tar" in s3_here.server.objects("sets/a")
    assert taken(s3_here, tmp_path, HERE).since != ELSEWHERE.since
    assert taken(s3_here, tmp_path, replace(ELSEWHERE, beat=ago(0)), restart=True).pid == os.getpid()
    assert "train-000009.tar" not in s3_here.server.objects("sets/a")


@pytest.mark.parametrize("restart", [False, True])
def test_a_build_at_work_is_respected_by_a_store_that_knows_no_condition(s3_here, tmp_path, restart):
    s3_here.proxy.add(Unheard("If-None-Match", method="PUT", key=MARK_NAME, times=1000))
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as alive:
        theirs = replace(HERE, pid=alive.pid, plan="another")
        with pytest.raises(WrongCall, match=f"process {alive.pid} on"):
            taken(s3_here, tmp_path, theirs, restart=restart)
        alive.communicate(b"\n")

    assert s3_here.server.get("sets/a/" + MARK_NAME) == theirs.data()


@pytest.mark.parametrize(
    ("silent_s", "fields", "held"),
    [
        (0, {}, False),  # this very process, seen from itself
        (0, {"place": "another container"}, True),
        (DEAD_S - 60, {"place": "another container"}, True),
        (DEAD_S, {"place": "another container"}, False),
        (0, {"pid": 0, "place": "another container"}, False),
        (1e7, {"pid": 1}, True),
        (0, {"pid": 2**40}, False),
    ],
)
def test_only_a_holder_of_the_same_container_is_looked_for_among_the_processes(silent_s, fields, held):
    assert replace(HERE, beat=ago(silent_s), **fields).is_held() == held


@pytest.mark.parametrize(("silent_s", "held"), [(0, True), (BEAT_S, True), (3 * BEAT_S, False)])
def test_where_no_place_is_told_a_missing_process_must_be_silent_too(monkeypatch, silent_s, held):
    monkeypatch.setattr(prefix, "_place", lambda: "")  # as on systems without /proc

    assert replace(HERE, place="", pid=2**40, beat=ago(silent_s)).is_held() == held


def test_two_holders_of_one_number_and_second_are_told_apart():
    first, second = Mark.mine("p"), Mark.mine("p")

    assert Mark.parse(first.data()) == first
    assert first.same_holder(replace(first, beat=ago(99)))
    assert not first.same_holder(replace(second, since=first.since))


def test_a_sign_of_life_on_its_way_does_not_bring_the_mark_back(s3_here, tmp_path, monkeypatch):
    monkeypatch.setattr(publish, "BEAT_S", 0.01)
    beat = Hold(method="PUT", key=MARK_NAME, skip=1)
    s3_here.proxy.add(beat)
    with publishing(opened(s3_here), tmp_path / "work", plan="p", restart=False) as publisher:
        (tmp_path / "work").mkdir()
        assert beat.reached.wait(30)
        end = threading.Thread(target=finished, args=(tmp_path / "work", publisher, {}))
        end.start()
        assert s3_here.proxy.wait_for(1, "PUT", "manifest.json")
        s3_here.proxy.wait_for(1, "DELETE", MARK_NAME, timeout=0.5)  # none comes
        beat.release()
        end.join(60)

    assert s3_here.proxy.wait_for(2, "PUT", MARK_NAME)
    assert set(s3_here.server.objects("sets/a")) == {"samples.tsv", "manifest.json"}


def test_the_shards_of_another_plan_are_refused_unless_they_may_be_discarded(s3_here, tmp_path):
    other = replace(ELSEWHERE, plan="another", pid=0)

    with pytest.raises(WrongCall, match="of another source or other settings"):
        taken(s3_here, tmp_path, other)
    assert s3_here.server.get("sets/a/" + MARK_NAME) == other.data()
    assert taken(s3_here, tmp_path, other, restart=True).plan == "p"


def test_a_build_that_was_taken_over_writes_no_manifest(s3_here, tmp_path):
    with (
        pytest.raises(AlexshardError, match="was taken over by process 7 on elsewhere"),
        publishing(opened(s3_here), tmp_path / "work", plan="p", restart=False) as publisher,
    ):
        s3_here.server.put("sets/a/" + MARK_NAME, ELSEWHERE.data())
        finished(tmp_path / "work", publisher, {})
    assert s3_here.server.objects("sets/a") == {MARK_NAME: ELSEWHERE.data(), "samples.tsv": b"rows"}


# The command ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sixteen pictures in the layout of ILSVRC2012; the shards below hold two each."""
    return ilsvrc(tmp_path_factory.mktemp("source") / "small")


@pytest.fixture(scope="module")
def local(source: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """Every file of the same set in a folder."""
    out = tmp_path_factory.mktemp("local") / "set"
    run(*build_command(source, out))
    return files_of(out)


def build_command(source: object, out: object, *more: object) -> list[str]:
    return alexshard("build", source, "--out", out, "--size", 32, "--samples-per-shard", 2, "-j", 1, *more)


@pytest.fixture
def environment(s3: S3, tmp_path: Path) -> dict[str, str]:
    return {**os.environ, **s3.environment, "XDG_CACHE_HOME": str(tmp_path / "cache")}


@contextmanager
def started(command: list[str], environment: dict[str, str]) -> Iterator[subprocess.Popen[str]]:
    """A command at work; killed in the end, whatever became of the test."""
    with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) as build:
        try:
            yield build
        finally:
            build.kill()


def told(command: list[str], environment: dict[str, str], code: int = 0) -> str:
    """What a command that ends with `code` says, on both streams."""
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == code, f"exit {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done.stdout + done.stderr


def test_a_set_in_a_store_is_the_local_one_byte_for_byte_whatever_fails_on_the_way(
    s3, source, local, environment, tmp_path
):
    s3.proxy.add(
        Status(500, times=2, method="PUT", key="train-000001"),
        Status(503, method="PUT", key="train-000003"),
        CutRequest(100, method="PUT", key="train-000004.tar"),
        Cut(0, method="PUT", key="val-000000.idx"),
        Slow(0.5, method="PUT", key="val-000001"),
        Status(500, method="PUT", key="manifest.json"),
        Status(503, method="GET", key="list-type"),
    )

    said = told(build_command(source, s3.url("sets/a")), environment)

    assert s3.server.objects("sets/a") == local
    assert s3.url("sets/a") in said
    assert s3.proxy.spent()
    assert files_of(tmp_path / "cache") == {}


@pytest.mark.parametrize(
    ("method", "key"),
    [("PUT", "train-000003.tar"), ("PUT", "samples.tsv"), ("PUT", "manifest.json"), ("DELETE", MARK_NAME)],
)
def test_a_build_killed_at_any_stage_continues_and_sends_no_shard_twice(
    s3, source, local, environment, tmp_path, method, key
):
    command = build_command(source, s3.url("sets/a"))
    hold = Hold(method=method, key=key, times=1000)
    s3.proxy.add(hold)
    with started(command, environment):
        assert hold.reached.wait(60)
    s3.proxy.clear()
    killed = s3.server.keys("sets/a/")
    sent = [path.stem for path in tmp_path.rglob("*.sent")]
    told(command, environment)

    assert ("sets/a/manifest.json" in killed) == (method == "DELETE")
    assert sent  # the held upload waited for one of three threads
    assert s3.server.objects("sets/a") == local
    assert [len(s3.proxy.seen("PUT", f"{name}.tar")) for name in sent] == [1] * len(sent)
    assert files_of(tmp_path / "cache") == {}


def test_a_stopped_build_says_how_to_continue_and_continues(s3, source, local, environment):
    command = build_command(source, s3.url("sets/a"))
    hold = Hold(method="PUT", key="val-000000.tar", times=1000)
    s3.proxy.add(hold)
    with started(command, environment) as build:
        assert hold.reached.wait(60)
        build.send_signal(signal.SIGINT)
        _, said = build.communicate(timeout=60)

    assert build.returncode == 130
    assert s3.url("sets/a") in said
    mark = Mark.parse(s3.server.get("sets/a/" + MARK_NAME))
    assert mark is not None
    assert mark.pid == 0
    s3.proxy.clear()
    told(command, environment)
    assert s3.server.objects("sets/a") == local


def test_what_has_gone_from_the_store_is_packed_again(s3, source, local, environment):
    command = build_command(source, s3.url("sets/a"))
    s3.proxy.add(Status(403, method="PUT", key="manifest.json", times=1000))
    told(command, environment, code=2)
    s3.proxy.clear()
    s3.server.delete("sets/a/train-000001.tar")
    s3.server.put("sets/a/train-000002.idx", b"spoilt")

    told(command, environment)

    assert s3.server.objects("sets/a") == local
    assert [len(s3.proxy.seen("PUT", f"train-00000{number}.tar")) for number in range(4)] == [1, 2, 2, 1]


def test_the_same_command_on_a_finished_set_is_done_and_another_is_refused(s3, source, local, environment):
    command = build_command(source, s3.url("sets/a"))
    for name, data in local.items():
        s3.server.put(f"sets/a/{name}", data)

    assert "complete already" in told(command, environment)
    another = told([*command, "--seed", "1"], environment, code=2)
    assert "is a shard set already, made by another command (set -> now):\n    seed: 0 -> 1\n" in another
    assert s3.server.objects("sets/a") == local
    s3.server.put("sets/a/train-000003.tar", b"cut")
    said = told(command, environment, code=1)
    assert "train-000003.tar is not as it was sent" in said
    assert s3.proxy.seen("PUT") == []
    assert "remove all that lies below this prefix, and the same command builds the set again" in said
    for name in local:
        s3.server.delete(f"sets/a/{name}")
    told(command, environment)
    assert s3.server.objects("sets/a") == local


def test_a_shard_of_bad_images_alone_leaves_no_gap_in_the_store(s3, environment, tmp_path):
    images = {wnid: [(name, b"bad") for name, _ in pictures] for wnid, pictures in named_images(2).items()}
    good = {wnid: [(f"{wnid}_9.JPEG", jpeg(number))] for number, wnid in enumerate(WNIDS)}
    source = ilsvrc(tmp_path / "source", {wnid: images[wnid] + good[wnid] for wnid in WNIDS})
    pack(source, tmp_path / "set", max_bad="100", samples_per_shard=1)

    told(
        build_command(source, s3.url("sets/a"), "--max-bad", 100, "--samples-per-shard", 1),
        environment,
    )

    assert "train-000002.tar" in s3.server.objects("sets/a")
    assert s3.server.objects("sets/a") == files_of(tmp_path / "set")


def test_a_folder_is_a_store_too_and_work_lies_where_it_is_asked_to(source, local, environment, tmp_path):
    address, work = f"file://{tmp_path}/store/a", tmp_path / "work"

    told(build_command(source, address, "--work", work), environment)

    assert files_of(tmp_path / "store") == {f"a/{name}": data for name, data in local.items()}
    assert not (tmp_path / "cache").exists()


def test_a_second_build_on_the_same_prefix_is_told_who_is_at_work(s3, source, environment, tmp_path):
    command = build_command(source, s3.url("sets/a"))
    hold = Hold(method="PUT", key="train-000000.tar", times=1000)
    s3.proxy.add(hold)
    with started(command, environment) as build:
        assert hold.reached.wait(60)
        said = told([*command, "--work", str(tmp_path / "other")], environment, code=2)
        assert f"process {build.pid} on {socket.gethostname()}, since " in said


@pytest.mark.parametrize(
    ("address", "said"),
    [
        ("s3://no-such-bucket/a", "there is no bucket no-such-bucket"),
        ("gs://bucket/a", "pip install '.[gcs]' in the clone of alexshard"),
        ("s3://user:pa55word@bucket/a", "s3://***@bucket/a holds credentials"),
    ],
)
def test_a_wrong_address_ends_before_anything_is_read_or_written(s3, source, environment, tmp_path, address, said):
    if address.startswith("gs") and importlib.util.find_spec("gcsfs"):
        pytest.skip("the extra gcs is installed")
    text = told(build_command(tmp_path / "no-source", address), environment, code=2)

    assert said in text
    assert "pa55word" not in text
    assert not (tmp_path / "cache").exists()


def test_a_prefix_with_other_things_is_refused_before_anything_is_read(s3, environment, tmp_path):
    s3.server.put("sets/a/holiday.jpg", b"x")

    said = told(build_command(tmp_path / "no-source", s3.url("sets/a")), environment, code=2)

    assert f"{s3.url('sets/a')} holds other things: holiday.jpg" in said


@pytest.mark.parametrize("scheme", ["file://", "local://"])
@pytest.mark.parametrize("addressed", ["source", "output", "both"])
def test_an_output_inside_the_source_is_refused_by_address_too(environment, tmp_path, addressed, scheme):
    source = ilsvrc(tmp_path / "source")
    before = files_of(source)
    named = f"{scheme if addressed != 'output' else ''}{source}"
    out = f"{scheme if addressed != 'source' else ''}{source}/out"

    said = told(build_command(named, out), environment, code=2)

    assert f"the output {source / 'out'} lies inside the source" in said
    assert files_of(source) == before


def test_a_foreign_output_is_refused_before_a_source_in_a_store_is_listed(s3, source, environment, tmp_path):
    for name, data in files_of(source).items():
        s3.server.put(f"data/{name}", data)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "holiday.jpg").write_bytes(b"x")

    said = told(build_command(s3.url("data"), tmp_path / "out"), environment, code=2)

    assert "holds other things: holiday.jpg" in said
    assert [seen for seen in s3.proxy.seen("GET") if seen.range] == []


def test_show_and_verify_say_that_a_set_in_a_store_must_be_copied_first(environment):
    for command in ("show", "verify"):
        said = told(alexshard(command, "s3://bucket/sets/a"), environment, code=2)
        assert "s3://bucket/sets/a lies in a store" in said
