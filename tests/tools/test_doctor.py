"""`alexshard doctor` says what is installed, whether it serves and what to do."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version

import pytest
from alexshard.tools import doctor

from tests.conftest import alexshard, run


@pytest.fixture(scope="module")
def findings():
    return {finding.about: finding for finding in doctor.examine()}


def test_everything_it_stands_on_is_looked_at(findings):
    assert set(findings) == {
        "python", "machine", "numpy", "packing", "loading", "pillow", "simplejpeg", "scipy",
        "webdataset", "dali", "torch", "gpu", "training", "tensorboard", "dask", "s3fs", "gcsfs", "disk",
    }  # fmt: skip


def test_versions_are_those_that_are_installed(findings):
    for name in ("numpy", "simplejpeg", "webdataset"):
        assert findings[name].found == version(name)
    assert findings["torch"].found.startswith(version("torch"))
    assert "libjpeg-turbo" in findings["pillow"].found


def test_the_command_exits_0_where_nothing_is_broken_and_gives_one_object(findings):
    told = json.loads(run(*alexshard("doctor", "--json")))

    assert told["schema"] == 1
    assert told["sound"] is True
    assert {finding["about"] for finding in told["findings"]} == set(findings)


def test_a_broken_library_is_a_problem_with_a_remedy_and_exit_code_1(tmp_path):
    (tmp_path / "simplejpeg.py").write_text("raise OSError('its library is missing')")
    done = subprocess.run(
        alexshard("doctor"), env={"PYTHONPATH": str(tmp_path)}, capture_output=True, text=True, check=False
    )

    assert done.returncode == 1
    assert "problem  simplejpeg   broken: OSError: its library is missing" in done.stdout
    assert "what to do: pip install --force-reinstall simplejpeg" in done.stdout
    assert "Traceback" not in done.stderr


def test_loops_that_were_not_compiled_are_noted(monkeypatch):
    monkeypatch.setitem(sys.modules, "alexshard.tools.packing._square", None)
    finding = next(finding for finding in doctor.examine() if finding.about == "packing")

    assert finding.status == doctor.NOTE
    assert "Pillow and NumPy do the same" in finding.found
    assert finding.remedy.endswith("--editable . in the clone of alexshard")


def test_normalisers_that_were_not_compiled_are_noted(monkeypatch):
    assert doctor._training().found.startswith("normalisers in C; bf16 ")
    monkeypatch.setattr("alexshard.trainer.chains.COMPILED", False)

    assert doctor._training().status == doctor.NOTE
    assert "its loops in C were not compiled" in doctor._training().found


@pytest.mark.parametrize(("name", "extra"), [("dask", "cluster"), ("s3fs", "s3"), ("gcsfs", "gcs")])
def test_a_library_that_only_some_work_asks_for_is_noted_where_it_is_absent(monkeypatch, name, extra):
    def absent(_name: str) -> str:
        raise doctor.PackageNotFoundError(_name)

    def finding() -> doctor.Finding:
        return next(finding for finding in doctor.examine() if finding.about == name)

    try:
        assert finding().found == version(name)
    except PackageNotFoundError:
        assert finding().status == doctor.NOTE
    monkeypatch.setattr(doctor, "version", absent)

    assert finding().status == doctor.NOTE
    assert finding().found.startswith("not installed: ")
    assert finding().remedy == f"pip install '.[{extra}]' in the clone of alexshard"


def only(*installed: str):
    """A machine where of all packages these are installed."""

    def lookup(name: str) -> str:
        if name in installed:
            return "2.4.0"
        raise doctor.PackageNotFoundError(name)

    return lookup


def test_a_missing_dali_is_noted_and_both_builds_at_once_are_a_problem(monkeypatch):
    monkeypatch.setattr(doctor, "version", only())
    assert (doctor._dali().status, doctor._dali().remedy) == (doctor.NOTE, "pip install nvidia-dali-cuda130")
    monkeypatch.setattr(doctor, "version", only("nvidia-dali-cuda120", "nvidia-dali-cuda130"))
    assert doctor._dali().status == doctor.PROBLEM


@pytest.mark.parametrize(
    ("compiled", "builds", "status", "said"),
    [
        (True, ("nvidia-dali-cuda130",), doctor.OK, "backend threads on a CPU, dali on a GPU"),
        (True, (), doctor.NOTE, "backend threads on a CPU; without DALI none on a GPU"),
        (False, ("nvidia-dali-cuda120",), doctor.NOTE, "not compiled: backend dali"),
        (False, (), doctor.PROBLEM, "backend reference alone"),
    ],
)
def test_the_backend_that_a_loader_will_take_is_told(monkeypatch, compiled, builds, status, said):
    monkeypatch.setattr("alexshard.pipeline.kernels.AVAILABLE", compiled)
    monkeypatch.setattr(doctor, "version", only(*builds))
    finding = doctor._loading()

    assert finding.status == status
    assert said in finding.found
    assert bool(finding.remedy) == (status != doctor.OK)


def test_the_instruction_of_avx2_resampling_is_told_from_that_of_sse4(tmp_path):
    avx2, sse4 = b"\xc5\xf5\xf5\xc8", b"\x66\x0f\xf5\xc1"  # vpmaddwd ymm1, ymm1, ymm0 and pmaddwd xmm0, xmm1
    (tmp_path / "avx2").write_bytes((avx2 + b"\x90" * 50) * 62)
    (tmp_path / "sse4").write_bytes((sse4 + b"\x90" * 50) * 62)

    assert doctor.has_avx2_code(tmp_path / "avx2")
    assert not doctor.has_avx2_code(tmp_path / "sse4")


def test_no_other_command_imports_torch(sample_set):
    code = (
        "import sys; from alexshard.tools.cli_alexshard import main; "
        f"main(['info', {str(sample_set)!r}], standalone_mode=False); "
        "sys.exit('torch' in sys.modules or 'nvidia.dali' in sys.modules)"
    )
    run(sys.executable, "-c", code)
