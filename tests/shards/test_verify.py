from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
from alexshard.shards import BadManifest, verify_shard_set
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from .conftest import Tiny


def test_a_sound_set_has_no_problems(tiny: Tiny) -> None:
    checked: list[str] = []

    assert verify_shard_set(tiny.path, on_file=lambda name, _size: checked.append(name)) == []
    assert {"train-000000.tar", "train-000000.idx", "samples.tsv", "mean_image.npy"} <= set(checked)


def test_sha256sum_agrees_with_the_set(tiny: Tiny) -> None:
    done = subprocess.run(
        ["sha256sum", "-c", "--strict", "SHA256SUMS"], cwd=tiny.path, capture_output=True, text=True
    )

    assert (done.returncode, done.stdout.count(": OK")) == (0, 11)


@settings(max_examples=400, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(data=st.data())
def test_every_flipped_bit_is_found_and_its_file_named(tiny: Tiny, data: st.DataObject) -> None:
    """Damages the set in place and mends it after, since 400 copies of it would take longer than the check."""
    name = data.draw(st.sampled_from(sorted(path.name for path in tiny.path.iterdir())))
    path = tiny.path / name
    whole = path.read_bytes()
    bit = data.draw(st.integers(0, 8 * len(whole) - 1))
    damaged = bytearray(whole)
    damaged[bit // 8] ^= 1 << bit % 8
    path.write_bytes(damaged)
    try:
        if name == "manifest.json":
            with pytest.raises(BadManifest):
                verify_shard_set(tiny.path)
        else:
            assert name in {problem.file for problem in verify_shard_set(tiny.path)}
    finally:
        path.write_bytes(whole)


def test_a_damaged_image_is_named_with_its_offset_and_key(tiny: Tiny, tmp_path: Path) -> None:
    copy = tmp_path / "set"
    shutil.copytree(tiny.path, copy)
    shard = bytearray((copy / "train-000000.tar").read_bytes())
    shard[512 + 100] ^= 1
    (copy / "train-000000.tar").write_bytes(shard)

    first = verify_shard_set(copy)[0]

    assert (first.file, first.offset, first.key) == ("train-000000.tar", 512, "train_0_0")
    assert "CRC-32" in str(first)


def test_a_truncated_shard_is_named_with_the_byte_where_it_ends(tiny: Tiny, tmp_path: Path) -> None:
    copy = tmp_path / "set"
    shutil.copytree(tiny.path, copy)
    shard = copy / "train-000000.tar"
    shard.write_bytes(shard.read_bytes()[:3000])

    problems = [problem for problem in verify_shard_set(copy) if problem.file == shard.name]

    assert [(problem.offset, problem.what) for problem in problems] == [(3000, "ends 72 bytes too early")]


def test_two_swapped_labels_are_found(tiny: Tiny, tmp_path: Path) -> None:
    copy = tmp_path / "set"
    shutil.copytree(tiny.path, copy)
    text = (copy / "samples.tsv").read_text(encoding="utf-8", errors="surrogateescape")
    (copy / "samples.tsv").write_text(text.replace("train_0_0\t0", "train_0_0\t1"), encoding="utf-8")

    found = "\n".join(map(str, verify_shard_set(copy)))

    assert "sample train_0_0: is labelled b'0', samples.tsv says 1" in found


@pytest.mark.parametrize(
    "name", ["train-000001.tar", "val-000000.idx", "samples.tsv", "mean_image.npy", "SHA256SUMS"]
)
def test_a_missing_file_is_a_problem_not_a_crash(tiny: Tiny, tmp_path: Path, name: str) -> None:
    copy = tmp_path / "set"
    shutil.copytree(tiny.path, copy)
    (copy / name).unlink()

    assert name in {problem.file for problem in verify_shard_set(copy)}


def test_a_shard_that_the_manifest_does_not_know_is_a_problem(tiny: Tiny, tmp_path: Path) -> None:
    copy = tmp_path / "set"
    shutil.copytree(tiny.path, copy)
    shutil.copy(copy / "train-000000.tar", copy / "train-000002.tar")

    assert [str(problem) for problem in verify_shard_set(copy)] == [
        "train-000002.tar: is not in the manifest, so no reader will find it"
    ]
