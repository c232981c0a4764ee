"""The layout: folders at the top level, importable only as parts of palestra, in one direction."""

from __future__ import annotations

import ast
import os
import shutil
import subprocess
import sys
import sysconfig
import tomllib
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import palestra

ROOT = Path(__file__).resolve().parent.parent
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
FOLDERS = ["envs", "rollout", "tools", "trainer", "verifiers"]

# Imports go one way: a part may import those before it.
LAYERS = [
    {"types"},
    {"endpoint"},
    {"tools"},
    {"verifiers"},
    {"envs"},
    {"rollout"},
    {"trainer"},
    {"view"},
    {"demo"},
    {"cli"},
]
LEVEL = {part: level for level, parts in enumerate(LAYERS) for part in parts}


def module_of(path: Path) -> str:
    """The name under which a file is imported: tools/call.py is palestra.tools.call."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    if parts[0] != "palestra":
        parts = ("palestra", *parts)
    return ".".join(parts).removesuffix(".__init__")


def sources() -> list[Path]:
    return sorted(
        path
        for folder in ["palestra", *FOLDERS]
        for path in (ROOT / folder).rglob("*.py")
        if "__pycache__" not in path.parts
    )


def part_of(module: str) -> str:
    """palestra.tools.call -> tools; palestra.cli_envs -> cli; palestra itself -> palestra."""
    part = [*module.split("."), ""][1]
    return "cli" if part.startswith("cli") else part or "palestra"


def imported_modules(path: Path) -> Iterator[tuple[int, str]]:
    """Every import statement of a file, wherever it stands, as (line, absolute module name)."""
    package = module_of(path) if path.name == "__init__.py" else module_of(path).rpartition(".")[0]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name
        elif isinstance(node, ast.ImportFrom):
            base = f"{package}.{node.module or ''}".rstrip(".") if node.level else node.module or ""
            if base == "palestra":  # from palestra import tools
                for alias in node.names:
                    yield node.lineno, f"palestra.{alias.name}"
            else:
                yield node.lineno, base


def run(*command: str | Path, cwd: Path, env: dict[str, str] | None = None) -> str:
    done = subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env={**os.environ, **(env or {})},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, f"{command} failed:\n{done.stdout}\n{done.stderr}"
    return done.stdout


def test_every_folder_of_python_files_is_a_listed_package() -> None:
    folders = {module_of(path.parent / "__init__.py") for path in sources()}
    assert sorted(folders) == sorted(PYPROJECT["tool"]["setuptools"]["packages"])


def test_every_package_has_an_init_file() -> None:
    # The finder of an editable install does not see a folder without one.
    assert [p.parent for p in sources() if not (p.parent / "__init__.py").exists()] == []


def test_every_module_is_at_a_known_level() -> None:
    modules = {part_of(module_of(path)) for path in sources()} - {"palestra", "__main__"}
    assert modules <= set(LEVEL)


def test_imports_go_one_way() -> None:
    wrong = []
    for path in sources():
        importer = part_of(module_of(path))
        if importer in {"palestra", "__main__"}:  # the front of the package names all its parts
            continue
        for line, module in imported_modules(path):
            if module.split(".")[0] != "palestra":
                continue
            imported = part_of(module)
            if imported not in LEVEL:
                if importer == "cli":  # the last of all
                    continue
                wrong.append(f"{path.relative_to(ROOT)}:{line} imports the front, {module}")
            elif LEVEL[imported] > LEVEL[importer] or (
                LEVEL[imported] == LEVEL[importer] and imported != importer
            ):
                wrong.append(f"{path.relative_to(ROOT)}:{line} imports {module}")
    assert wrong == []


def test_no_file_imports_a_folder_by_its_bare_name() -> None:
    files = [
        path
        for folder in ["tests", "benchmarks", "examples"]
        for path in (ROOT / folder).rglob("*.py")
    ]
    wrong = [
        f"{path.relative_to(ROOT)}:{line} imports {module}"
        for path in [*sources(), *files]
        for line, module in imported_modules_outside(path)
        # Peers that benchmarks compare with may be PyPI's `verifiers`.
        if module.split(".")[0] in {"envs", "rollout", "tools", "trainer"}
    ]
    assert wrong == []


def imported_modules_outside(path: Path) -> Iterator[tuple[int, str]]:
    for line, module in imported_modules(path):
        if not module.startswith("palestra"):
            yield line, module


@pytest.mark.parametrize(
    ("code", "rule"),
    [
        ("import envs\n", "TID251"),
        ("from tools import call\n", "TID251"),
        ("from verifiers import Rubric\n", "TID251"),
        ("import trainer.losses\n", "TID251"),
        ("import rollout\n", "TID251"),
        ("from ..tools import call\n", "TID252"),
    ],
)
def test_the_linter_refuses(code: str, rule: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "ruff", "check", "--stdin-filename", "envs/example.py", "-"],
        cwd=ROOT,
        input=code,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 1
    assert rule in done.stdout


@pytest.mark.parametrize("extra", ["", "train", "dev", "serve", "plot"])
def test_the_constraints_pin_every_direct_dependency(extra: str) -> None:
    project = PYPROJECT["project"]
    lines = project["optional-dependencies"][extra] if extra else project["dependencies"]
    pins = {
        canonicalize_name(line.split("==")[0]): line.split("==")[1].strip()
        for line in (ROOT / "constraints.txt").read_text().splitlines()
        if "==" in line and not line.startswith("#")
    }
    for requirement in map(Requirement, lines):
        pin = pins.get(canonicalize_name(requirement.name))
        assert pin is not None, f"constraints.txt does not pin {requirement.name}"
        assert requirement.specifier.contains(pin), f"{requirement} excludes the tested {pin}"


def test_the_version_is_stated_once() -> None:
    assert palestra.__version__ == PYPROJECT["project"]["version"]


def test_the_two_engines_are_declared_as_conflicting() -> None:
    assert [{"extra": "sglang"}, {"extra": "vllm"}] in PYPROJECT["tool"]["uv"]["conflicts"]


# The embedded engine is made of torch; everything else up to rollout does without.
TORCH_MODULES = {
    f"palestra.rollout.{name}"
    for name in ("attention", "engine_hf", "grammar", "sampling", "slot_cache", "vllm_worker")
}


def test_nothing_up_to_rollout_imports_torch() -> None:
    modules = [
        module
        for module in map(module_of, sources())
        if LEVEL.get(part_of(module), 0) <= LEVEL["rollout"] and module not in TORCH_MODULES
    ]
    code = (
        f"import importlib, sys\nfor name in {modules!r}:\n    importlib.import_module(name)\n"
        "    assert 'torch' not in sys.modules, name\n"
    )
    run(sys.executable, "-c", code, cwd=ROOT, env={"PYTHONSAFEPATH": "1"})


@pytest.mark.parametrize(
    "code", ["import palestra", "from palestra.cli import main\nmain(['--help'])"]
)
def test_starting_up_is_light(code: str) -> None:
    heavy = ["datasets", "openai", "pandas", "sympy", "torch", "transformers"]
    guarded = f"""
import sys
try:
    exec({code!r})
except SystemExit as end:
    assert not end.code, end
loaded = [name for name in {heavy!r} if name in sys.modules]
assert not loaded, loaded
"""
    run(sys.executable, "-c", guarded, cwd=ROOT, env={"PYTHONSAFEPATH": "1"})


# Real builds and installs.


@pytest.fixture(scope="module")
def source_tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of what is packaged, so that building leaves nothing behind in the repository."""
    tree = tmp_path_factory.mktemp("source") / "palestra-tree"
    tree.mkdir()
    for name in ["pyproject.toml", "README.md", "LICENSE"]:
        shutil.copy(ROOT / name, tree)
    for folder in ["palestra", *FOLDERS]:
        shutil.copytree(ROOT / folder, tree / folder, ignore=shutil.ignore_patterns("__pycache__"))
    return tree


def fresh_environment(folder: Path) -> Path:
    """A virtual environment without palestra that sees the dependencies installed beside us.

    A path line in a .pth file adds a folder without reading the .pth files in it, hence without
    the editable palestra of the environment that runs the tests.
    """
    run(sys.executable, "-m", "venv", "--without-pip", folder, cwd=folder.parent)
    python = folder / "bin" / "python"
    purelib = run(
        python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=folder
    )
    dependencies = sysconfig.get_path("purelib")
    (Path(purelib.strip()) / "dependencies.pth").write_text(dependencies + "\n")
    return python


def pip_install(python: Path, *arguments: str | Path) -> None:
    pip: list[str | Path] = [sys.executable, "-m", "pip", "--python", python]
    offline = ["--no-deps", "--no-build-isolation", "--no-index", "--quiet"]
    # The editable palestra beside us must neither satisfy nor be replaced by the install.
    run(*pip, "install", "--ignore-installed", *offline, *arguments, cwd=python.parent)


def assert_imports_only_as_palestra(python: Path, expected: Path) -> None:
    code = f"""
import importlib.util, pathlib, palestra.envs, palestra.rollout, palestra.verifiers
import palestra.tools, palestra.trainer, palestra.view
expected = pathlib.Path({str(expected)!r}).resolve()
for module in (palestra, palestra.envs, palestra.tools):
    assert pathlib.Path(module.__file__).resolve().is_relative_to(expected), module.__file__
for name in {FOLDERS!r}:
    spec = importlib.util.find_spec(name)
    # PyPI's verifiers may be installed beside us; our folder must never answer to the name.
    where = [] if spec is None else [*(spec.submodule_search_locations or []), spec.origin or ""]
    assert not any(pathlib.Path(p).resolve().is_relative_to(expected) for p in where), where
"""
    run(python, "-c", code, cwd=python.parent)
    assert "usage" in run(python.parent / "palestra", "--help", cwd=python.parent).lower()


def test_an_installed_wheel_gives_palestra_and_no_bare_names(
    source_tree: Path, tmp_path: Path
) -> None:
    build: list[str | Path] = [
        sys.executable,
        "-m",
        "build",
        "--no-isolation",
        "--outdir",
        tmp_path,
    ]
    run(*build, "--sdist", source_tree, cwd=tmp_path)
    (sdist,) = tmp_path.glob("*.tar.gz")
    # The wheel is built from the unpacked sdist, so that a file missing there is noticed.
    shutil.unpack_archive(sdist, tmp_path / "unpacked", filter="data")
    (unpacked,) = (tmp_path / "unpacked").iterdir()
    run(*build, "--wheel", unpacked, cwd=tmp_path)
    (wheel,) = tmp_path.glob("*.whl")

    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0].split("-")[0] for name in names} == {"palestra"}
    packaged = {name for name in names if ".dist-info/" not in name}
    here = {
        "/".join(path.relative_to(source_tree).parts)
        for folder in ["palestra", *FOLDERS]
        for path in (source_tree / folder).rglob("*")
        if path.is_file() and "egg-info" not in str(path)
    }
    assert packaged == {n if n.startswith("palestra/") else f"palestra/{n}" for n in here}

    python = fresh_environment(tmp_path / "environment")
    pip_install(python, wheel)
    assert_imports_only_as_palestra(python, tmp_path / "environment")


@pytest.mark.parametrize("how", ["plain", "editable"])
def test_pip_install_gives_palestra_and_no_bare_names(
    how: str, source_tree: Path, tmp_path: Path
) -> None:
    tree = shutil.copytree(source_tree, tmp_path / "tree")
    python = fresh_environment(tmp_path / "environment")
    pip_install(python, *(["--editable"] if how == "editable" else []), tree)
    where = tree if how == "editable" else tmp_path / "environment"
    assert_imports_only_as_palestra(python, where)
