"""The layout that the design fixes, and the habits that keep the package small and safe."""

import ast
import importlib.metadata
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "robostack"
SOURCES = sorted(PACKAGE.rglob("*.py"))
HEAVY = {"torch", "mujoco", "jax", "gymnasium", "zarr", "lerobot"}


def run_python(code: str) -> str:
    """Standard output of `python -c code`, run in the repository root with the root on the path."""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.parametrize("name", ["envs", "policies", "kernels", "datasets"])
def test_the_folders_are_at_hand_from_the_top(name):
    link = ROOT / name
    assert link.is_symlink()
    assert link.resolve() == PACKAGE / name
    assert link.is_dir(), f"{name} points at a folder that a fresh clone does not have"


def test_datasets_is_a_namespace_package():
    assert not (PACKAGE / "datasets" / "__init__.py").exists()


def test_datasets_from_the_root_is_hugging_faces():
    found = run_python("import importlib.util as u; print(u.find_spec('datasets').origin)")
    assert Path(found).parts[-3:] == ("site-packages", "datasets", "__init__.py")


def test_every_other_folder_is_a_package():
    """import-linter and the wheel leave out what is not."""
    namespaces = {PACKAGE / "datasets", PACKAGE / "kernels"}
    folders = {source.parent for source in SOURCES} - namespaces
    assert [str(f.relative_to(ROOT)) for f in sorted(folders) if not (f / "__init__.py").exists()] == []


def test_every_room_stands_in_the_import_contract():
    folders = {path.name for path in PACKAGE.iterdir() if path.is_dir() and any(path.rglob("*.py"))}
    modules = {path.stem for path in PACKAGE.glob("*.py")} - {"__init__"}
    contract = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"][0]
    named = [name.strip() for layer in contract["layers"] for name in re.split("[:|]", layer)]
    assert sorted(named) == sorted(f"robostack.{room}" for room in folders | modules)


def test_the_map_names_every_room_and_nothing_that_is_not_there():
    text = (ROOT / "docs" / "architecture.md").read_text()
    rooms = {f"{path.name}/" for path in PACKAGE.iterdir() if path.is_dir() and any(path.rglob("*.py"))}
    modules = {path.name for path in PACKAGE.glob("*.py")} - {"__init__.py"}
    assert set(re.findall(r"^\| `([\w/.]+)` \|", text, re.MULTILINE)) >= rooms | modules
    named = set(re.findall(r"\b(?:[a-z]+/)+\w+\.py\b", text)) - {"policies/NAME.py"}
    assert len(named) > 20
    assert sorted(name for name in named if not any((folder / name).exists() for folder in (PACKAGE, ROOT))) == []
    contract = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"][0]
    shown = re.search(r"```\n(__main__\n.*?)```", text, re.DOTALL)
    layers = [layer.replace("robostack.", "").replace(" : ", ", ") for layer in contract["layers"]]
    assert shown is not None and shown[1].splitlines() == layers


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_files_are_short(path):
    assert len(path.read_text().splitlines()) <= 500


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_nothing_is_pickled(path):
    """Not on disk, not on the wire: a checkpoint or a message must not be able to run code."""
    banned = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve"}
    for node in ast.walk(ast.parse(path.read_text())):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name.split(".")[0] for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [(node.module or "").split(".")[0]]
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "torch":
            assert node.attr not in ("load", "save"), f"torch.{node.attr} pickles: use safetensors (line {node.lineno})"
        elif isinstance(node, ast.keyword) and node.arg == "allow_pickle":
            assert isinstance(node.value, ast.Constant), f"allow_pickle is not plainly False (line {node.lineno})"
            assert node.value.value is False, f"allow_pickle (line {node.lineno})"
        assert not banned & set(names), f"line {getattr(node, 'lineno', '?')}"


@pytest.mark.parametrize("module", ["robostack", "robostack.cli", "robostack.doctor", "robostack.common.extras"])
def test_the_command_line_starts_without_the_heavy_packages(module):
    assert run_python(f"import sys, {module}; print(*({HEAVY!r} & sys.modules.keys()))") == ""


def test_the_command_is_installed():
    scripts = importlib.metadata.distribution("robostack").entry_points.select(group="console_scripts")
    assert [(script.name, script.value) for script in scripts] == [("robostack", "robostack.cli:main")]


@pytest.mark.parametrize("script", ["scripts/setup", "scripts/demo", "scripts/benchmark", "scripts/test", ".ci/run"])
def test_scripts_are_executable_and_parse(script):
    path = ROOT / script
    assert path.stat().st_mode & 0o111
    subprocess.run(["bash", "-n", str(path)], check=True)
