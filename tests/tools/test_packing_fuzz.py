"""Mutated images, archives and development kits: no crash, no hang, no image unaccounted for (fuzz.py).

ALEXSHARD_FUZZ_SECONDS and ALEXSHARD_FUZZ_SEED set how long the slow test looks, and at which. A run prints its
seed, so that it can be repeated.
"""

from __future__ import annotations

import os
import secrets

import pytest

from tests.tools import fuzz

FIRST = 600  # mutants, four whole builds among them


def test_the_first_mutants_of_a_known_seed_are_packed_or_refused(tmp_path, capsys):
    result = _fuzz(0, tmp_path, capsys, mutants=FIRST)

    assert result.mutants == FIRST
    assert sum(result.became[f"build {fate}"] for fate in ("packed", "refused")) == FIRST // fuzz.BUILD_EVERY


@pytest.mark.slow
def test_a_minute_of_mutants_never_seen_before_are_packed_or_refused(tmp_path, capsys):
    seed = int(os.environ.get("ALEXSHARD_FUZZ_SEED", secrets.randbelow(1 << 32)))
    _fuzz(seed, tmp_path, capsys, seconds=float(os.environ.get("ALEXSHARD_FUZZ_SECONDS", 60)))


def _fuzz(seed, tmp_path, capsys, **until):
    result = fuzz.fuzz(seed, tmp_path / "kept", **until)

    with capsys.disabled():
        print(f"\n{result}")
    assert result.found == []
    assert result.mutants > 0
    return result


@pytest.mark.parametrize(
    ("harm", "told"),
    [
        ("os.kill(os.getpid(), 11)", "exit code -11"),
        ("1 / 0", "ZeroDivisionError"),
        ("time.sleep(1e6)", "hangs for 2 s"),
    ],
)
def test_the_fuzzer_notices_a_crash_an_exception_and_a_hang(tmp_path, monkeypatch, harm, told):
    (tmp_path / "sitecustomize.py").write_text(
        "import os, sys, time\n"
        "def harm(*_, **__):\n"
        f"    {harm}\n"
        "if 'tests.tools.fuzz' in ' '.join(sys.orig_argv):\n"
        "    import alexshard.tools.packing.decode as module\n"
        "    module.decode = harm\n",
        encoding="ascii",
    )
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")]))
    monkeypatch.setattr(fuzz, "HANGS_AFTER_S", 2)

    result = fuzz.fuzz(0, tmp_path / "kept", mutants=FIRST)

    assert len(result.found) == 1
    assert told in result.found[0]
    assert [path.name for path in (tmp_path / "kept").iterdir() if path.name.startswith("mutant-0-")]
