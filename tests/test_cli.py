"""The `palestra` command as a user meets it: real processes, their output and exit status."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from palestra.rollout.recorder import read_episodes
from palestra.types import Outcome

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


def test_the_traceback_is_there_for_those_who_ask() -> None:
    done = palestra("envs", "show", "Nothing-v0", PALESTRA_DEBUG="1")
    assert done.returncode == 1
    assert done.stderr.startswith("Traceback")


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
    for name in ("python", "cores", "memory", "gpu", "torch", "chromium", "sandbox unsafe"):
        assert findings[name]["found"]
    sandboxes = findings["sandboxes"]
    assert list(sandboxes) == ["namespace", "landlock", "docker", "unsafe"]
    assert all(offer["problem"] or offer["guarantees"] for offer in sandboxes.values())
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
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    model = f"model={tmp_path / 'model'}"
    done = subprocess.run(
        [sys.executable, "-c", code, "train", "rl", write_config(tmp_path), model],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert "pip install 'palestra[train]'" in error_of(done)


# eval


def evaluate(*arguments: str | Path, **variables: str) -> dict[str, Any]:
    done = palestra("eval", *arguments, "--json", cwd=None, **variables)
    assert done.returncode == 0, done.stderr
    figures = json.loads(done.stdout)
    assert isinstance(figures, dict)
    return figures


def test_the_oracle_solves_every_task_and_its_episodes_are_kept(tmp_path: Path) -> None:
    out = tmp_path / "run"
    figures = evaluate("Arithmetic-v0", "--model", "oracle", "--n", "100", "--out", out)
    assert (figures["mean"], figures["n"], figures["masked"]) == (1.0, 100, {})
    assert figures["low"] > 0.95
    assert figures["mean_turns"] > 3
    assert json.loads((out / "summary.json").read_text()) == figures
    assert len(read_episodes(out / "episodes" / "eval.jsonl")) == 100
    assert f"{out} exists" in error_of(
        palestra("eval", "Arithmetic-v0", "--model", "oracle", "--out", out)
    )


def test_random_replies_hardly_score_and_the_same_seed_gives_the_same_figures() -> None:
    arguments = ["Arithmetic-v0", "--model", "random", "--n", "50", "--seed", "7"]
    figures = evaluate(*arguments)
    assert figures["mean"] <= 0.1  # a short answer may be hit by luck
    assert figures["n"] == 50
    assert evaluate(*arguments) == figures


def test_the_table_of_an_evaluation_names_mean_interval_and_masked_episodes() -> None:
    done = palestra("eval", "Arithmetic-v0", "--model", "oracle", "--n", "20")
    assert "mean score            1.000  [0.839, 1.000] at 95%" in done.stdout
    assert "masked                0 (0.0%)" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["Arithmetic-v0", "--model", "nowhere"], "there is no model folder nowhere"),
        (["Arithmetic-v0", "--model", "orakle"], "did you mean oracle?"),
        (["Arithmetic-v0", "--model", "random", "--split", "dev"], '"dev"'),
    ],
)
def test_what_cannot_be_evaluated_is_told(arguments: list[str], expected: str) -> None:
    assert expected in error_of(palestra("eval", *arguments))


def test_a_model_folder_plays_and_one_without_its_chat_template_is_refused(tmp_path: Path) -> None:
    from palestra.rollout.chat_format import ChatFormat
    from palestra.tools import calculator
    from palestra.trainer.load import save_policy
    from palestra.trainer.tiny import build_policy

    conversation = [{"role": "user", "content": "1 + 2"}, {"role": "assistant", "content": "3"}]
    model, tokenizer = build_policy([(conversation, [calculator.schema()])], seed=0)
    chat_format = ChatFormat.from_tokenizer(tokenizer)
    save_policy(model, tokenizer, chat_format, tmp_path / "model")
    model_folder = str(tmp_path / "model")
    arguments = ["Arithmetic-v0", "--model", model_folder, "--n", "8", "--max-tokens", "16"]
    figures = evaluate(*arguments, OMP_NUM_THREADS="1")
    assert figures["n"] == 8
    assert 1 <= figures["mean_tokens"] <= 16 * figures["mean_turns"]

    for file in ("chat_format.json", "chat_template.jinja"):
        (tmp_path / "model" / file).unlink(missing_ok=True)
    assert "chat template" in error_of(palestra("eval", *arguments))


SLOW = """
import asyncio
from palestra import ToolEnv, tool, verifiers
from palestra.rollout.policy import tool_call

@tool
async def wait() -> str:
    "Wait a little."
    await asyncio.sleep(0.02)
    return "done"

class SlowEnv(ToolEnv):
    "Wait, then answer."
    def __init__(self, **kwargs):
        tasks = [{"prompt": f"{n}", "answer": f"{n}"} for n in range(500)]
        super().__init__(tasks=tasks, tools=[wait], verifier=verifiers.number, **kwargs)

    @staticmethod
    def solve(task, messages):
        return task.answer if messages[-1]["role"] == "tool" else tool_call("wait")
"""


def start(*arguments: str | Path, cwd: Path, **variables: str) -> subprocess.Popen[str]:
    """A command that Ctrl-C reaches, even where the tests run in the background."""
    return subprocess.Popen(
        [COMMAND, *map(str, arguments)],
        cwd=cwd,
        env={**os.environ, **variables},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def interrupt_once_written(running: subprocess.Popen[str], file: Path) -> None:
    """Press Ctrl-C as soon as there is something in a file."""
    deadline = time.monotonic() + 60
    while not (file.exists() and file.stat().st_size > 0):
        assert running.poll() is None, running.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)
    running.send_signal(signal.SIGINT)


def test_ctrl_c_ends_an_evaluation_in_one_line_and_what_was_written_is_readable(
    tmp_path: Path,
) -> None:
    (tmp_path / "slow.py").write_text(SLOW)
    installed(tmp_path, "slow", "slow/Slow-v0 = slow:SlowEnv")
    arguments = ["eval", "slow/Slow-v0", "--model", "oracle", "--max-concurrent", "1"]
    running = start(*arguments, "--out", "run", cwd=tmp_path, PYTHONPATH=str(tmp_path))
    episodes = tmp_path / "run" / "episodes" / "eval.jsonl"
    interrupt_once_written(running, episodes)
    stdout, stderr = running.communicate(timeout=30)
    assert (running.returncode, stdout) == (130, "")
    assert stderr == "palestra: interrupted: what was written so far stays readable\n"
    kept = read_episodes(episodes)
    assert 0 < len(kept) < 500
    assert all(episode.outcome is Outcome.SCORED for episode in kept)


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


def on_a_small_disk(size: str, folder: Path, command: str) -> subprocess.CompletedProcess[str]:
    """Run a shell command with `folder`/small on a file system of its own, kept in `folder`/kept.

    The file system exists only for the processes that this starts.
    """
    (folder / "small").mkdir()
    script = f"""
mount -t tmpfs -o size={size} none small || exit 77
{command}; status=$?
cp -r small kept
exit $status
"""
    done = subprocess.run(
        ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", script],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=120,
    )
    if done.returncode == 77 or "unshare failed" in done.stderr:
        pytest.skip("this machine lets no user mount a file system")
    return done


def test_a_disk_that_fills_up_ends_an_evaluation_in_one_line_and_keeps_what_fitted(
    tmp_path: Path,
) -> None:
    command = f"'{COMMAND}' eval Arithmetic-v0 --model oracle --n 2000 --out small/run"
    done = on_a_small_disk("200k", tmp_path, command)
    assert "eval.jsonl: the disk is full: free some space" in error_of(done)
    assert len(read_episodes(tmp_path / "kept" / "run" / "episodes" / "eval.jsonl")) > 20


def write_sft_config(folder: Path, **changes: object) -> None:
    conversation = [{"role": "user", "content": "1 + 2"}, {"role": "assistant", "content": "3"}]
    row = json.dumps({"messages": conversation, "tools": []})
    (folder / "rows.jsonl").write_text(f"{row}\n" * 8)
    settings = {"model": "tiny", "data": "rows.jsonl", "batch_rows": 8, **changes}
    lines = [f"{key} = {json.dumps(value)}\n" for key, value in settings.items()]
    (folder / "sft.toml").write_text("".join(lines))


def test_a_disk_that_fills_up_ends_training_in_one_line_and_keeps_the_metrics(
    tmp_path: Path,
) -> None:
    write_sft_config(tmp_path, out="small/run", steps=2)
    # Room for the metrics, not for the weights.
    done = on_a_small_disk("600k", tmp_path, f"OMP_NUM_THREADS=1 '{COMMAND}' train sft sft.toml")
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith("palestra: the disk is full: free some space")
    assert "Traceback" not in done.stderr
    steps = (tmp_path / "kept" / "run" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in steps] == [1, 2]


def test_ctrl_c_ends_training_in_one_line_and_keeps_the_metrics(tmp_path: Path) -> None:
    write_sft_config(tmp_path, out="run", steps=100_000)
    running = start("train", "sft", "sft.toml", cwd=tmp_path, OMP_NUM_THREADS="1")
    interrupt_once_written(running, tmp_path / "run" / "metrics.jsonl")
    _, stderr = running.communicate(timeout=30)
    assert running.returncode == 130
    assert (
        stderr.splitlines()[-1] == "palestra: interrupted: what was written so far stays readable"
    )
    assert "Traceback" not in stderr
    steps = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in steps] == list(range(1, len(steps) + 1))


# check


def test_check_audits_a_verifier_and_says_what_it_pays_for(tmp_path: Path) -> None:
    tasks = tmp_path / "tasks.jsonl"
    tasks.write_text('{"prompt": "6 * 7?", "answer": "42"}\n{"prompt": "1 + 1?", "answer": "2"}\n')
    fine = palestra("check", "--verifier", "exact", "--tasks", str(tasks))
    assert fine.returncode == 0, fine.stderr
    assert "no problem found" in fine.stdout
    (tmp_path / "loose.py").write_text("def within(reply, answer):\n    return answer in reply\n")
    loose = palestra(
        "check", "--verifier", "loose:within", "--tasks", str(tasks), PYTHONPATH=str(tmp_path)
    )
    assert loose.returncode == 1
    assert "pays for" in loose.stdout
    report = palestra("check", "--verifier", "exact", "--tasks", str(tasks), "--json")
    assert json.loads(report.stdout)["problems"] == []


def test_check_of_an_environment_says_whether_it_keeps_its_promises() -> None:
    done = palestra("check", "Arithmetic-v0", "--n", "1")
    assert (done.returncode, done.stdout) == (0, "Arithmetic-v0: keeps its promises\n")


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ([], "name an environment, or a verifier with --verifier"),
        (["--verifier", "number"], "name tasks with references"),
        (["--verifier", "nmber", "--tasks", "Arithmetic-v0"], 'no verifier "nmber"'),
        (
            ["--verifier", "no_such:thing", "--tasks", "x.jsonl"],
            "No module named 'no_such': is it installed",
        ),
    ],
)
def test_check_answers_wrong_arguments_in_one_line(arguments: list[str], expected: str) -> None:
    assert expected in error_of(palestra("check", *arguments))
