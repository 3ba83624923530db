"""Mutated images, archives and development kits: no crash, no hang, no image unaccounted for (fuzz.py).

ALEXSHARD_FUZZ_SECONDS and ALEXSHARD_FUZZ_SEED set how long and which. A run prints its seed, so that it can be
repeated.
"""

from __future__ import annotations

import os
import secrets

import pytest

from tests.tools import fuzz


def test_the_first_mutants_of_a_known_seed_are_packed_or_refused(tmp_path, capsys):
    _fuzz(0, 5, tmp_path, capsys)


@pytest.mark.slow
def test_a_minute_of_mutants_never_seen_before_are_packed_or_refused(tmp_path, capsys):
    seed = int(os.environ.get("ALEXSHARD_FUZZ_SEED", secrets.randbelow(1 << 32)))
    _fuzz(seed, float(os.environ.get("ALEXSHARD_FUZZ_SECONDS", 60)), tmp_path, capsys)


def _fuzz(seed, seconds, tmp_path, capsys):
    result = fuzz.fuzz(seed, seconds, tmp_path / "kept")

    with capsys.disabled():
        print(f"\n{result}")
    assert result.found == []
    assert result.mutants > 0


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

    result = fuzz.fuzz(0, 60, tmp_path / "kept")

    assert len(result.found) == 1
    assert told in result.found[0]
    assert [path.name for path in (tmp_path / "kept").iterdir() if path.name.startswith("mutant-0-")]
