from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tracemalloc
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from alexshard.shards import BadManifest, Manifest, Problem, verify_shard_set
from alexshard.shards.damage import manifest_damage
from alexshard.shards.manifest import file_entry, sums_text
from alexshard.shards.tar import END_OF_ARCHIVE, member_header, padding
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from .conftest import Tiny, early_set


def test_a_sound_set_has_no_problems(tiny: Tiny) -> None:
    checked: list[str] = []

    assert verify_shard_set(tiny.path, on_file=lambda name, _size: checked.append(name)) == []
    assert {"train-000000.tar", "samples.tsv", "mean_image.npy"} <= set(checked)


def test_sha256sum_agrees_with_the_set(tiny: Tiny) -> None:
    done = subprocess.run(
        ["sha256sum", "-c", "--strict", "SHA256SUMS"], cwd=tiny.path, capture_output=True, text=True
    )

    assert (done.returncode, done.stdout.count(": OK")) == (0, 11)


@contextmanager
def damaged(path: Path, data: bytes) -> Iterator[None]:
    """The file with other bytes; mended after, since a copy of the set would take longer than the check."""
    whole = path.read_bytes()
    path.write_bytes(data)
    try:
        yield
    finally:
        path.write_bytes(whole)


def places(path: Path) -> list[tuple[str, int | None]]:
    return [(problem.file, problem.offset) for problem in verify_shard_set(path)]


def with_flip(data: bytes, bit: int) -> bytes:
    copy = bytearray(data)
    copy[bit // 8] ^= 1 << bit % 8
    return bytes(copy)


@settings(max_examples=400, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(data=st.data())
def test_every_flipped_bit_is_one_problem_that_names_its_file_and_byte(tiny: Tiny, data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(sorted(path.name for path in tiny.path.iterdir())))
    whole = (tiny.path / name).read_bytes()
    bit = data.draw(st.integers(0, 8 * len(whole) - 1))

    with damaged(tiny.path / name, with_flip(whole, bit)):
        assert places(tiny.path) == [(name, bit // 8)]


@pytest.mark.parametrize("name", ["val-000000.idx", "quarantine.jsonl", "classes.txt"])
def test_no_byte_of_a_small_file_is_an_exception(tiny: Tiny, name: str) -> None:
    whole = (tiny.path / name).read_bytes()
    for byte in range(len(whole)):
        with damaged(tiny.path / name, with_flip(whole, 8 * byte + byte % 8)):
            assert places(tiny.path) == [(name, byte)]


def test_no_bit_of_the_manifest_is_an_exception(tiny: Tiny) -> None:
    whole = (tiny.path / "manifest.json").read_bytes()
    for bit in range(0, 8 * len(whole), 11):  # coprime to 8: every place in a byte, and every byte
        damage = manifest_damage(with_flip(whole, bit))

        assert damage is not None
        assert (damage.offset, damage.mended) == (bit // 8, whole)


def test_a_flipped_bit_of_the_manifest_hides_no_other_damage(tiny: Tiny) -> None:
    manifest, shard = tiny.path / "manifest.json", tiny.path / "train-000001.tar"
    in_a_digest = manifest.read_bytes().index(b"sha256") + 12
    with (
        damaged(manifest, with_flip(manifest.read_bytes(), 8 * in_a_digest)),
        damaged(shard, with_flip(shard.read_bytes(), 8 * 600 + 3)),
    ):
        assert places(tiny.path) == [("manifest.json", in_a_digest), ("train-000001.tar", 600)]


def test_a_manifest_with_more_than_one_wrong_bit_is_refused(tiny: Tiny) -> None:
    path = tiny.path / "manifest.json"
    with damaged(path, with_flip(with_flip(path.read_bytes(), 40), 99)), pytest.raises(BadManifest):
        verify_shard_set(tiny.path)


def first(path: Path) -> Problem:
    return verify_shard_set(path)[0]


def test_a_flipped_bit_of_an_image_is_told_with_key_and_bit(tiny: Tiny) -> None:
    shard = tiny.path / "train-000000.tar"
    was = shard.read_bytes()[612]
    with damaged(shard, with_flip(shard.read_bytes(), 8 * 612 + 5)):
        assert str(first(tiny.path)) == (
            "train-000000.tar at byte 612, sample train_0_0: in its image, "
            f"bit 5 is flipped: 0x{was ^ 32:02x} where 0x{was:02x} was written"
        )


def test_an_image_with_more_wrong_bits_is_named_by_its_first_byte(tiny: Tiny) -> None:
    shard = tiny.path / "train-000000.tar"
    with damaged(shard, with_flip(with_flip(shard.read_bytes(), 8 * 600), 8 * 650)):
        problem = first(tiny.path)

    assert (problem.file, problem.offset, problem.key) == (shard.name, 512, "train_0_0")
    assert "more than one bit is wrong" in problem.what


def test_damage_in_several_places_of_a_shard_is_told_of_each(tiny: Tiny) -> None:
    shard = tiny.path / "train-000000.tar"
    data = shard.read_bytes()
    for byte in (3, 600, 1024 + 148, 5000):  # header, image, header of the label, another sample
        data = with_flip(data, 8 * byte)
    with damaged(shard, data):
        assert [offset for _, offset in places(tiny.path)] == [3, 600, 1172, 5000]


def test_of_a_shard_that_is_wrong_everywhere_the_first_places_are_told(tiny: Tiny) -> None:
    shard = tiny.path / "train-000000.tar"
    with damaged(shard, bytes(len(shard.read_bytes()))):
        told = verify_shard_set(tiny.path)

    assert len(told) == 11
    assert (told[0].offset, told[-1].what) == (0, "is wrong in 2 more places")


@pytest.mark.parametrize("name", ["train-000000.tar", "val-000000.idx", "samples.tsv", "SHA256SUMS", "_info.json"])
def test_a_truncated_file_is_named_with_the_byte_where_it_ends(tiny: Tiny, name: str) -> None:
    whole = (tiny.path / name).read_bytes()
    with damaged(tiny.path / name, whole[:-9]):
        assert places(tiny.path) == [(name, len(whole) - 9)]
        assert first(tiny.path).what == "ends 9 bytes too early"


@pytest.mark.parametrize("name", ["train-000000.tar", "val-000000.idx", "samples.tsv", "SHA256SUMS", "_info.json"])
def test_an_extended_file_is_named_with_the_byte_where_it_should_end(tiny: Tiny, name: str) -> None:
    whole = (tiny.path / name).read_bytes()
    with damaged(tiny.path / name, whole + b"\0"):
        assert places(tiny.path) == [(name, len(whole))]


@pytest.mark.parametrize("names", [("train-000000.tar", "train-000001.tar"), ("samples.tsv", "classes.txt")])
def test_two_swapped_files_are_both_named(tiny: Tiny, names: tuple[str, str]) -> None:
    one, other = (tiny.path / name for name in names)
    first_bytes, other_bytes = one.read_bytes(), other.read_bytes()
    with damaged(one, other_bytes), damaged(other, first_bytes):
        assert {file for file, _ in places(tiny.path)} == set(names)


@pytest.mark.parametrize(
    "name", ["train-000001.tar", "val-000000.idx", "samples.tsv", "mean_image.npy", "SHA256SUMS", "classes.txt"]
)
def test_a_missing_file_is_one_problem(tiny: Tiny, tmp_path: Path, name: str) -> None:
    copy = tmp_path / "set"
    shutil.copytree(tiny.path, copy)
    (copy / name).unlink()

    assert [str(problem) for problem in verify_shard_set(copy)] == [
        f"{name}: cannot be read: No such file or directory"
    ]


def test_a_shard_that_the_manifest_does_not_know_is_a_problem(tiny: Tiny, tmp_path: Path) -> None:
    copy = tmp_path / "set"
    shutil.copytree(tiny.path, copy)
    shutil.copy(copy / "train-000000.tar", copy / "train-000002.tar")

    assert [str(problem) for problem in verify_shard_set(copy)] == [
        "train-000002.tar: is not in the manifest, so no reader will find it"
    ]


def test_index_and_shard_damaged_together_are_both_named(tiny: Tiny) -> None:
    index, shard = tiny.path / "train-000000.idx", tiny.path / "train-000000.tar"
    with (
        damaged(index, with_flip(index.read_bytes(), 100)),
        damaged(shard, with_flip(shard.read_bytes(), 8 * 1024)),  # a header: the rest cannot be found
    ):
        assert places(tiny.path) == [("train-000000.idx", None), ("train-000000.tar", 1024)]


@pytest.mark.parametrize("name", ["train-000000.tar", "val-000000.idx", "samples.tsv", "SHA256SUMS"])
def test_a_set_of_an_early_build_is_verified_too(tiny: Tiny, tmp_path: Path, name: str) -> None:
    early = early_set(tiny.path, tmp_path / "early")

    assert verify_shard_set(early) == []
    with damaged(early / name, with_flip((early / name).read_bytes(), 100)):
        assert {file for file, _ in places(early)} == {name}


def test_of_several_wrong_bytes_in_a_file_that_follows_from_the_manifest_the_first_is_named(tiny: Tiny) -> None:
    for name in ("_info.json", "classes.txt", "SHA256SUMS"):
        whole = (tiny.path / name).read_bytes()
        with damaged(tiny.path / name, whole[:4] + b"XY" + whole[6:]):
            assert places(tiny.path) == [(name, 4)]


@pytest.mark.parametrize(
    ("was", "is_now", "what"),
    [
        (b"train_1_1\t1\ttrain\t", b"train_1_1\tx\ttrian\t", "is no sample"),
        (b"train\ttrain-000001.tar\toriginal 1", b"train\ttrain-000000.tar\toriginal 2", "whose turn it is"),
        (b"train_1_1\t1", b"train_1_9\t0", "is of train_1_9, the index has train_1_1 there"),
    ],
)
def test_of_several_wrong_bytes_in_samples_tsv_the_first_wrong_line_is_named(
    tiny: Tiny, was: bytes, is_now: bytes, what: str
) -> None:
    path = tiny.path / "samples.tsv"
    whole = path.read_bytes()
    assert whole.count(was) == 1
    line = whole.rindex(b"\n", 0, whole.index(was)) + 1
    with damaged(path, whole.replace(was, is_now)):
        problem = first(tiny.path)

    assert (problem.file, problem.offset) == ("samples.tsv", line)
    assert what in problem.what


def spoilt(draw: st.DrawFn, whole: bytes) -> bytes:
    """A file as a bad disk, a broken copy or an editor may leave it."""
    start = draw(st.integers(0, len(whole) - 1))
    end = min(len(whole), start + draw(st.integers(0, 600)))
    return whole[:start] + draw(st.binary(max_size=600)) + whole[end:]


@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(data=st.data())
def test_whatever_happened_to_whichever_files_these_are_named_and_no_others(
    tiny: Tiny, data: st.DataObject
) -> None:
    names = sorted(path.name for path in tiny.path.iterdir())
    chosen = data.draw(st.lists(st.sampled_from(names), min_size=1, max_size=4, unique=True))
    wrong = set()
    with ExitStack() as stack:
        for name in chosen:
            whole = (tiny.path / name).read_bytes()
            damage = data.draw(st.composite(spoilt)(whole))
            stack.enter_context(damaged(tiny.path / name, damage))
            wrong |= {name} if damage != whole else set()
        try:
            found = {problem.file for problem in verify_shard_set(tiny.path)}
        except BadManifest:
            found = wrong if "manifest.json" in wrong else set()

        assert found == wrong


@pytest.mark.parametrize(
    "exchange", [os.mkfifo, lambda path: path.symlink_to("/dev/zero")], ids=["pipe", "device"]
)
@pytest.mark.parametrize("early", [False, True], ids=["", "early"])
def test_what_is_no_regular_file_is_told_and_never_read(tiny: Tiny, tmp_path: Path, exchange, early) -> None:
    copy = early_set(tiny.path, tmp_path / "set") if early else shutil.copytree(tiny.path, tmp_path / "set")
    names = {path.name for path in copy.iterdir()} - {"manifest.json"} - ({"train-000001.tar"} if early else set())
    for name in names:
        (copy / name).unlink()
        exchange(copy / name)
    program = "import sys, alexshard.shards as s; print(*s.verify_shard_set(sys.argv[1]), sep='\\n')"
    done = subprocess.run(
        [sys.executable, "-c", program, copy], capture_output=True, text=True, timeout=60, check=True
    )

    assert {
        line.partition(":")[0] for line in done.stdout.splitlines() if "it is no regular file" in line
    } >= names - ({"_info.json", "classes.txt", "samples.tsv"} if early else set())


def with_claim(tiny: Tiny, dest: Path, size: int, who: str) -> Path:
    """A sealed copy in which the only image of the val shard has a size.

    Args:
        who: says so: its index; the manifest too, of the whole shard; or the shard itself has it, as a hole.
    """
    shutil.copytree(tiny.path, dest)
    key = tiny.samples["val"][0].key
    manifest = Manifest.load(dest)
    label_at = 1024 + size + padding(size)
    index = f"v1.2 1\nppm 512 {size} {key}.ppm cls {label_at} 1 {key}.cls\n".encode("ascii")
    (dest / "val-000000.idx").write_bytes(index)
    rows = (dest / "samples.tsv").read_bytes().splitlines(keepends=True)[:-1]
    (dest / "samples.tsv").write_bytes(b"".join(rows))
    shard = dest / "val-000000.tar"
    with shard.open("wb") as file:
        file.write(member_header(f"{key}.ppm", min(size, 8**11 - 1)))
        file.seek(label_at - 512 if who == "shard" else 4096)
        file.write(member_header(f"{key}.cls", 1) + b"0".ljust(512, b"\0") + END_OF_ARCHIVE)
    with shard.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    val = manifest.splits["val"]
    entry = replace(
        val.shards[0],
        samples=1,
        bytes=label_at + 2048 if who == "manifest" else shard.stat().st_size,
        sha256=digest,
        index_sha256=hashlib.sha256(index).hexdigest(),
    )
    splits = {**manifest.splits, "val": replace(val, samples=1, found=2, shards=(entry,))}
    files = {**manifest.files, "samples.tsv": file_entry((dest / "samples.tsv").read_bytes())}
    sums = sums_text(splits, files).encode("utf-8")
    (dest / "SHA256SUMS").write_bytes(sums)
    sealed = replace(manifest, splits=splits, files=files, sums_sha256=hashlib.sha256(sums).hexdigest()).sealed()
    (dest / "manifest.json").write_text(sealed.to_json(), encoding="utf-8")
    return dest


@pytest.mark.parametrize(
    ("size", "who"),
    [(7_000_000_000, "index"), (7_000_000_000, "manifest"), (9_000_000_000, "manifest"), (50_000_000, "shard")],
)
def test_verify_takes_no_memory_by_the_size_that_a_sealed_set_claims(
    tiny: Tiny, tmp_path: Path, size: int, who: str
) -> None:
    liar = with_claim(tiny, tmp_path / "set", size, who)

    tracemalloc.start()
    told = verify_shard_set(liar)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()

    assert any(problem.file.startswith("val-000000") for problem in told)
    assert peak < 20e6


def test_a_folder_in_the_place_of_a_file_is_told_too(tiny: Tiny, tmp_path: Path) -> None:
    copy = shutil.copytree(tiny.path, tmp_path / "set")
    (copy / "classes.txt").unlink()
    (copy / "classes.txt").mkdir()

    assert [str(problem) for problem in verify_shard_set(copy)] == [
        "classes.txt: cannot be read: it is no regular file"
    ]


def test_of_a_file_that_is_far_too_long_no_more_is_read_than_was_promised(tiny: Tiny, tmp_path: Path) -> None:
    copy = shutil.copytree(tiny.path, tmp_path / "set")
    os.truncate(copy / "classes.txt", 10**12)
    length = (tiny.path / "classes.txt").stat().st_size

    tracemalloc.start()
    told = [str(problem) for problem in verify_shard_set(copy)]
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()

    assert told == [f"classes.txt at byte {length:,}: goes on for {10**12 - length:,} bytes after its end"]
    assert peak < 20e6
