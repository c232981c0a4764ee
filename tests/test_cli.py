"""The `palestra` command as a user meets it: real processes, their output and exit status."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

COMMAND = str(Path(sys.executable).parent / "palestra")
SETTINGS = ["env", "group_size", "learning_rate", "tasks_per_step", "temperature"]


def palestra(
    *arguments: str | Path, cwd: Path | None = None, **variables: str
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [COMMAND, *map(str, arguments)],
        cwd=cwd,
        env={**os.environ, **variables},
        capture_output=True,
        text=True,
        timeout=120,
    )


def error_of(done: subprocess.CompletedProcess[str]) -> str:
    """The one line that a user's mistake is answered with."""
    assert done.returncode == 2, (done.returncode, done.stdout, done.stderr)
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert line.startswith("palestra: ")
    return line.removeprefix("palestra: ")


def test_help_names_every_command() -> None:
    done = palestra("--help")
    assert done.returncode == 0
    for command in ("envs", "demo", "train", "eval", "doctor"):
        assert f"\n    {command} " in done.stdout


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["evns"], "unknown command 'evns': did you mean envs?"),
        (["envs", "shwo"], "unknown command 'shwo': did you mean show?"),
        (["train", "sftt"], "unknown stage 'sftt': did you mean sft?"),
        (["train", "dpo"], "unknown stage 'dpo': there are sft, rl"),
        ([], "required: COMMAND"),
        (["train", "rl"], "required: CONFIG.toml (see palestra train rl --help)"),
        (["demo", "--seed", "-1"], "--seed: must be a whole number from 0 up, got '-1'"),
        (["eval", "Arithmetic-v0", "--model", "oracle", "--n", "0"], "--n: must be"),
        (["eval", "Arithmetic-v0", "--model", "oracle", "--temperature", "nan"], "got 'nan'"),
        (["doctor", "--jsn"], "unrecognized arguments: --jsn"),
    ],
)
def test_wrong_arguments_are_answered_in_one_line(arguments: list[str], expected: str) -> None:
    assert expected in error_of(palestra(*arguments))


# envs


def test_envs_list_has_the_built_in_environment_as_text_and_as_json() -> None:
    assert "palestra/Arithmetic-v0  " in palestra("envs", "list").stdout
    rows = json.loads(palestra("envs", "list", "--json").stdout)
    (row,) = [row for row in rows if row["id"] == "palestra/Arithmetic-v0"]
    assert row["description"]


def test_envs_show_prints_the_tools_and_a_task() -> None:
    done = palestra("envs", "show", "Arithmetic-v0")
    assert done.returncode == 0, done.stderr
    assert 'operator: "+" | "-" | "*" | "/", b: integer | number)' in done.stdout
    assert "train: 20000 tasks" in done.stdout
    assert "\n  user: " in done.stdout


@pytest.mark.parametrize(
    "arguments", [["envs", "show"], ["eval", "--model", "random"]], ids=["show", "eval"]
)
def test_an_unknown_environment_names_the_nearest(arguments: list[str]) -> None:
    assert 'did you mean "palestra/Arithmetic-v0"?' in error_of(
        palestra(*arguments, "Arithmatic-v0")
    )


def test_a_new_environment_passes_its_own_test_and_the_linter(tmp_path: Path) -> None:
    done = palestra("envs", "new", "price-list", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "price_list"
    assert sorted(path.name for path in folder.iterdir()) == [
        "price_list.py",
        "pyproject.toml",
        "test_price_list.py",
    ]
    ruff = [sys.executable, "-m", "ruff"]
    for command in (
        [sys.executable, "-m", "pytest", "-q", "-W", "error", "-p", "no:cacheprovider"],
        [*ruff, "check", "--select", "E,F,I,B,UP,PT,RUF", "--line-length", "100", "."],
        [*ruff, "format", "--check", "--line-length", "100", "."],
    ):
        ran = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120)
        assert ran.returncode == 0, ran.stdout + ran.stderr


def test_a_new_environment_can_go_elsewhere_but_never_over_something(tmp_path: Path) -> None:
    out = tmp_path / "deep" / "folder"
    assert palestra("envs", "new", "shop", "--out", out).returncode == 0
    before = (out / "shop.py").read_text()
    assert "exists and is not empty: choose another with --out" in error_of(
        palestra("envs", "new", "shop", "--out", out)
    )
    assert (out / "shop.py").read_text() == before


@pytest.mark.parametrize("name", ["7up", "a/b", "class", "", "é", "json"])
def test_a_new_environment_needs_a_name_that_can_be_imported(name: str, tmp_path: Path) -> None:
    error_of(palestra("envs", "new", name, cwd=tmp_path))
    assert list(tmp_path.iterdir()) == []


def installed(folder: Path, name: str, entry_point: str) -> None:
    """What installing a package with an entry point leaves in a folder of the import path."""
    metadata = folder / f"{name}-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text(f"[palestra.envs]\n{entry_point}\n")


def test_environments_of_installed_packages_are_listed_and_shown(tmp_path: Path) -> None:
    assert palestra("envs", "new", "shop", "--out", tmp_path / "shop").returncode == 0
    site = tmp_path / "site"
    site.mkdir()
    (site / "shop.py").write_text((tmp_path / "shop" / "shop.py").read_text())
    installed(site, "shop", "shop/Shop-v0 = shop:ShopEnv")
    listed = palestra("envs", "list", PYTHONPATH=str(site)).stdout
    assert "shop/Shop-v0            Find out what several pieces" in listed
    shown = palestra("envs", "show", "shop/Shop-v0", PYTHONPATH=str(site))
    assert "price(item: string)" in shown.stdout


def test_a_broken_package_does_not_take_the_others_down(tmp_path: Path) -> None:
    installed(tmp_path, "bad", "bad/Bad-v0 = no_such_module:BadEnv")
    done = palestra("envs", "list", PYTHONPATH=str(tmp_path))
    assert done.returncode == 0
    assert "bad/Bad-v0              cannot be loaded: ModuleNotFoundError" in done.stdout
    assert "palestra/Arithmetic-v0" in done.stdout


# doctor


def test_doctor_says_what_the_machine_offers_without_importing_torch() -> None:
    done = palestra("doctor", "--json")
    findings = json.loads(done.stdout)
    for name in ("python", "cores", "memory", "gpu", "torch", "docker", "landlock", "chromium"):
        assert findings[name]["found"]
    verbose = subprocess.run(
        [sys.executable, "-X", "importtime", COMMAND, "doctor"],
        capture_output=True,
        text=True,
        timeout=60,
    )
    imported = {line.rpartition("|")[2].strip() for line in verbose.stderr.splitlines()}
    assert "palestra.cli_doctor" in imported
    assert "torch" not in imported


# train


def write_config(folder: Path, **changes: object) -> Path:
    settings = {"model": "nowhere", "out": str(folder / "run"), "env": "Arithmetic-v0", **changes}
    path = folder / "config.toml"
    path.write_text("".join(f"{key} = {json.dumps(value)}\n" for key, value in settings.items()))
    return path


def test_train_help_lists_the_settings_of_the_stage() -> None:
    done = palestra("train", "rl", "--help")
    assert done.returncode == 0
    for setting in SETTINGS:
        assert f"\n  {setting} " in done.stdout


def test_a_missing_configuration_is_named(tmp_path: Path) -> None:
    assert "absent.toml" in error_of(palestra("train", "rl", tmp_path / "absent.toml"))


def test_malformed_toml_is_told_with_file_and_line(tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    path.write_text("steps = \n")
    error = error_of(palestra("train", "rl", path))
    assert "config.toml" in error
    assert "line 1" in error


def test_an_unknown_setting_names_the_nearest(tmp_path: Path) -> None:
    error = error_of(palestra("train", "rl", write_config(tmp_path, groupsize=4)))
    assert "groupsize" in error
    assert "did you mean group_size?" in error


@pytest.mark.parametrize("override", ["group_size=1", "temperature=0", "steps=many", "steps"])
def test_values_out_of_range_are_refused(override: str, tmp_path: Path) -> None:
    assert override.partition("=")[0] in error_of(
        palestra("train", "rl", write_config(tmp_path), override)
    )
    assert not (tmp_path / "run").exists()


def test_a_missing_model_folder_is_named(tmp_path: Path) -> None:
    assert "nowhere" in error_of(palestra("train", "rl", write_config(tmp_path)))


def test_an_output_folder_in_use_is_refused(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "metrics.jsonl").write_text("{}\n")
    assert "exists" in error_of(palestra("demo", "--out", tmp_path / "run"))
    assert os.listdir(tmp_path / "run") == ["metrics.jsonl"]


def test_a_missing_extra_is_named(tmp_path: Path) -> None:
    # A None in sys.modules makes Python raise what it raises for a package that is not installed.
    code = (
        "import sys; sys.modules['torch'] = None; from palestra.cli import main; sys.exit(main())"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, "train", "rl", write_config(tmp_path)],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert "pip install 'palestra[train]'" in error_of(done)


# Output that cannot be written


def test_a_full_disk_is_told_in_one_line() -> None:
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [COMMAND, "doctor"], stdout=full, stderr=subprocess.PIPE, text=True, timeout=60
        )
    assert done.returncode == 2
    assert done.stderr.splitlines() == [
        "palestra: the disk is full: free some space (what was written stays readable)"
    ]


def test_a_reader_that_leaves_is_no_error() -> None:
    pipeline = f"set -o pipefail; '{COMMAND}' doctor | true"
    done = subprocess.run(["bash", "-c", pipeline], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
