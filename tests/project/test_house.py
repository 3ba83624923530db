"""The house: which package may import which, and that what is installed is whole."""

from __future__ import annotations

import ast
import configparser
import shutil
import subprocess
import sys
import tomllib
import venv
import zipfile
from pathlib import Path

import alexshard
import pytest

ROOT = Path(alexshard.__file__).parent
PACKAGES = ("shards", "pipeline", "trainer", "tools")
MAY_IMPORT = {
    "shards": {"shards"},
    "pipeline": {"shards", "pipeline"},
    "trainer": {"shards", "pipeline", "trainer"},
    "tools": set(PACKAGES),
}
SOURCES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))


def imports_of(path: Path) -> set[str]:
    """Every module that a file names in an import statement, as an absolute name."""
    package = ("alexshard", *path.relative_to(ROOT).parent.parts)
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(package[: len(package) - node.level + 1]) if node.level else ""
            module = ".".join(part for part in (base, node.module) if part)
            found |= {module} if node.module else {f"{module}.{alias.name}" for alias in node.names}
    return found


def ours(path: Path) -> set[str]:
    return {name.split(".")[1] for name in imports_of(path) if name.startswith("alexshard.")} & set(PACKAGES)


def test_there_is_something_to_check() -> None:
    assert {path.relative_to(ROOT).parts[0] for path in SOURCES} == set(PACKAGES)
    assert ours(ROOT / "tools" / "terminal.py") == {"shards"}


@pytest.mark.parametrize("package", PACKAGES)
def test_imports_point_one_way(package: str) -> None:
    wrong = {
        f"{path.relative_to(ROOT)}: {target}"
        for path in SOURCES
        if path.relative_to(ROOT).parts[0] == package
        for target in ours(path) - MAY_IMPORT[package]
    }

    assert wrong == set()


def test_packing_imports_the_format_alone_of_the_packages() -> None:
    packing = [path for path in SOURCES if path.relative_to(ROOT).parts[:2] == ("tools", "packing")]
    wrong = {
        f"{path.name}: {name}"
        for path in packing
        for name in imports_of(path)
        if name.startswith("alexshard.") and name != "alexshard.__version__"
        if not name.startswith(("alexshard.shards", "alexshard.tools.packing"))
    }

    assert packing
    assert wrong == set()


def test_only_the_graph_knows_dali_beside_who_asks_whether_it_is_there_or_runs_it_as_a_peer() -> None:
    knowing = {str(path.relative_to(ROOT)) for path in SOURCES if "nvidia.dali" in path.read_text()}

    assert knowing == {"pipeline/graph.py", "tools/doctor.py", "tools/loader_peers_native.py"}


@pytest.mark.parametrize("package", PACKAGES)
def test_other_packages_take_only_what_a_package_offers(package: str) -> None:
    wrong = {
        f"{path.relative_to(ROOT)}: {name}"
        for path in SOURCES
        if path.relative_to(ROOT).parts[0] != package
        for name in imports_of(path)
        if name.startswith(f"alexshard.{package}.")
    }

    assert wrong == set()


@pytest.mark.parametrize("module", ["alexshard.tools.packing", "alexshard.tools.cli_alexshard"])
def test_packing_brings_in_neither_torch_nor_dali(module: str) -> None:
    code = f"import sys, {module}; print(*{{name.partition('.')[0] for name in sys.modules}})"
    done = subprocess.run([sys.executable, "-I", "-c", code], capture_output=True, text=True, check=True)

    assert "alexshard" in done.stdout.split()
    assert {"torch", "nvidia", "webdataset"} & set(done.stdout.split()) == set()


def test_the_map_of_packages_names_every_folder_with_code() -> None:
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    folders = {path.parent.relative_to(ROOT).as_posix() for path in SOURCES}
    mapped = dict(line.split(" = ") for line in config["options"]["package_dir"].split("\n") if line)

    assert {name for name in config["options"]["packages"].split("\n") if name} == set(mapped)
    assert set(mapped.values()) == folders | {"."}


def test_torch_is_pinned_in_the_constraints_alone() -> None:
    metadata = tomllib.loads((ROOT / "pyproject.toml").read_text())

    assert "torch==" in (ROOT / "constraints.txt").read_text()
    assert all("==" not in need for need in metadata["project"]["dependencies"] if need.startswith("torch"))


def test_one_version_is_told_everywhere() -> None:
    metadata = tomllib.loads((ROOT / "pyproject.toml").read_text())

    assert metadata["project"]["version"] == alexshard.__version__
    assert f"## {alexshard.__version__}" in (ROOT / "CHANGELOG.md").read_text()


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel built from a copy of the tracked files, as a clone has them."""
    clone, dist = tmp_path_factory.mktemp("clone"), tmp_path_factory.mktemp("dist")
    listing = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(listing, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for name in names.split("\0"):
        if name and (ROOT / name).is_file():
            (clone / name).parent.mkdir(parents=True, exist_ok=True)
            (clone / name).write_bytes((ROOT / name).read_bytes())
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", dist, clone]
    done = subprocess.run(build, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return next(dist.glob("*.whl"))


def test_the_wheel_holds_every_module_and_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        code = {name for name in archive.namelist() if name.endswith(".py")}

    assert code == {f"alexshard/{path.relative_to(ROOT).as_posix()}" for path in SOURCES} | {
        "alexshard/__init__.py"
    }


def test_the_wheel_holds_the_compiled_loops_where_there_is_a_compiler(wheel: Path) -> None:
    if shutil.which("cc") is None:
        pytest.skip("NOT TESTED: no C compiler")
    with zipfile.ZipFile(wheel) as archive:
        compiled = [name for name in archive.namelist() if name.endswith(".so")]

    assert {Path(name).parent.as_posix() for name in compiled} == {
        *("alexshard/pipeline", "alexshard/tools/packing", "alexshard/trainer")
    }


def test_every_module_of_the_installed_wheel_imports(wheel: Path, tmp_path: Path) -> None:
    """In a virtual environment of its own that sees this one's libraries, but not this checkout."""
    venv.create(tmp_path / "venv", with_pip=False, symlinks=True)
    python = tmp_path / "venv" / "bin" / "python"
    site = next((tmp_path / "venv" / "lib").glob("python*/site-packages"))
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    libraries = Path(pytest.__file__).parent.parent
    modules = [".".join(("alexshard", *path.relative_to(ROOT).with_suffix("").parts)) for path in SOURCES]
    code = (
        f"import sys, importlib; sys.path.append({str(libraries)!r})\n"
        f"for name in {[name.removesuffix('.__init__') for name in modules]!r}: importlib.import_module(name)\n"
        "import alexshard; print(alexshard.__file__)"
    )
    done = subprocess.run([python, "-I", "-c", code], capture_output=True, text=True, check=False, cwd=tmp_path)

    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == str(site / "alexshard" / "__init__.py")
