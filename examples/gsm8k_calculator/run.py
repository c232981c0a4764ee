"""The whole example in one command: demonstrations, SFT, GRPO, and an evaluation around each.

A stage whose result exists is skipped. Training that was interrupted goes on from what it saved
last, any other stage starts again. Each stage is a process of its own, so that its memory is free
for the next.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
import tomllib
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from gsm8k import HUB
from process_memory import wait_weighing

from palestra.trainer.run_dir import has_state

HERE = Path(__file__).resolve().parent
PROBLEMS = {"cpu": 50, "gpu": 1319}  # GSM8K's test set has 1,319

_PALESTRA = [sys.executable, "-c", "import sys; from palestra.cli import main; sys.exit(main())"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Stage:
    """A process, the folder that it fills, and the file that is there once it is done."""

    name: str
    command: list[str]
    folder: Path
    result: Path


@dataclass(frozen=True, kw_only=True, slots=True)
class Settings:
    """What a run is made with; a run is only ever continued with the same."""

    configuration: str
    data: str
    model: str
    problems: int
    sft: list[str]  # overrides of sft.toml
    rl: list[str]  # overrides of rl.toml


def stages(settings: Settings, out: Path) -> Iterator[Stage]:
    """The run, in order."""
    configs = HERE / settings.configuration
    sft, rl = out / "sft", out / "rl"
    defaults = tomllib.loads((configs / "rl.toml").read_text(encoding="utf-8"))
    env_args = {**defaults["env_args"], "data": settings.data}
    pairs = ", ".join(f"{name} = {json.dumps(value)}" for name, value in env_args.items())
    rl_args = [f"env_args={{{pairs}}}", *settings.rl]

    def evaluation(name: str, model: str | Path) -> Stage:
        folder = out / "evaluations" / name
        command = [sys.executable, str(HERE / "evaluate.py"), str(configs / "rl.toml")]
        command += ["--problems", str(settings.problems), "--out", str(folder)]
        command += [f"model={json.dumps(str(model))}", *rl_args]
        return Stage(
            name=f"evaluate {name}", command=command, folder=folder, result=folder / "results.json"
        )

    folder = out / "data"
    command = [sys.executable, str(HERE / "demonstrate.py"), "--data", settings.data]
    command += ["--model", settings.model, "--out", str(folder)]
    command += ["--context-length", str(defaults["context_length"])]
    demonstrations = folder / "demonstrations.jsonl"
    yield Stage(name="demonstrate", command=command, folder=folder, result=demonstrations)
    yield evaluation("base", settings.model)
    command = [*_PALESTRA, "train", "sft", str(configs / "sft.toml"), f"out={sft}"]
    command += [f"model={settings.model}", f"data={demonstrations}", *settings.sft]
    yield Stage(name="sft", command=command, folder=sft, result=sft / "summary.json")
    tuned = sft / "checkpoints" / "sft"
    yield evaluation("sft", tuned)
    command = [*_PALESTRA, "train", "rl", str(configs / "rl.toml"), f"out={rl}", f"model={tuned}"]
    yield Stage(name="rl", command=command + rl_args, folder=rl, result=rl / "summary.json")
    yield evaluation("rl", _last_checkpoint(rl))


def run_stage(stage: Stage, log: Path) -> None:
    """Run a stage unless it is done. Raises SystemExit with its status if it fails."""
    if stage.result.exists():
        print(f"{stage.name}: done already")
        return
    command = stage.command
    if has_state(stage.folder):  # an attempt was interrupted
        command = [*command, "--resume"]
    else:
        shutil.rmtree(stage.folder, ignore_errors=True)
    print(f"{stage.name}: {' '.join(command)}", flush=True)
    paths = [str(HERE), *filter(None, [os.environ.get("PYTHONPATH")])]
    # Threads that spin while they wait take many times as long once anything else runs here.
    env = {"OMP_WAIT_POLICY": "PASSIVE", **os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    started = time.perf_counter()
    child = subprocess.Popen(command, env=env)
    try:
        peak_mb = wait_weighing(child)
    except KeyboardInterrupt:
        child.wait()  # Ctrl-C has reached it, too
        raise SystemExit(130) from None
    code = child.returncode
    if code != 0 or not stage.result.exists():
        print(
            f"{stage.name} failed with status {code}; the next run goes on with it (to start it "
            f"again remove {stage.folder})"
        )
        raise SystemExit(code or 1)
    seconds = time.perf_counter() - started
    record = {"stage": stage.name, "seconds": round(seconds, 1), "peak_mb": round(peak_mb)}
    with open(log, "a", encoding="utf-8") as file:
        file.write(json.dumps(record) + "\n")


def show_results(out: Path) -> str:
    """A table of all evaluations that are done, in Markdown; also written to results.md."""
    lines = [
        "| model | | solved | 95% interval | calls: valid, answered | replies | tokens | lost |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name in ("base", "sft", "rl"):
        path = out / "evaluations" / name / "results.json"
        if not path.exists():
            continue
        for condition, found in json.loads(path.read_text(encoding="utf-8")).items():
            solved = round(found["success"] * found["problems"])
            valid, answered = found["valid_calls"], found["answered_calls"]
            calls = f"{valid}, {answered} of {found['calls']}" if found["calls"] else "none"
            lines.append(
                f"| {name} | {condition} | {solved} of {found['problems']} "
                f"| {found['low']:.1%}-{found['high']:.1%} | {calls} "
                f"| {found['turns']:.1f} | {found['tokens']:.0f} | {found['lost']} |"
            )
    text = "\n".join(lines) + "\n"
    (out / "results.md").write_text(text, encoding="utf-8")
    return text


def check_settings(settings: Settings, out: Path) -> None:
    """Note the settings of a new run. Raises SystemExit if the run there has others."""
    path = out / "settings.json"
    text = json.dumps(asdict(settings), indent=2) + "\n"
    if not path.exists():
        out.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    elif path.read_text(encoding="utf-8") != text:
        raise SystemExit(
            f"{out} was begun with other settings: see {path}, or choose another --out"
        )


def _last_checkpoint(run: Path) -> Path:
    return max((run / "checkpoints").glob("step_*"), default=run / "checkpoints" / "best")


def main() -> None:
    """Run what is left to do of a run, and print its figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    size = parser.add_mutually_exclusive_group()
    size.add_argument("--small", action="store_true", help="for two CPU cores (the default)")
    size.add_argument("--full", action="store_true", help="for one GPU")
    parser.add_argument("--out", type=Path, default=Path("runs/gsm8k"), metavar="DIR")
    parser.add_argument("--data", default=HUB, help="GSM8K: a folder of its two files, or the hub")
    parser.add_argument("--model", default="smollm2", help="a model folder, hub id or smollm2")
    parser.add_argument("--problems", type=int, help="how many test problems are evaluated")
    parser.add_argument("--sft", nargs="*", default=[], metavar="key=value", help="see sft.toml")
    parser.add_argument("--rl", nargs="*", default=[], metavar="key=value", help="see rl.toml")
    given = parser.parse_args()
    configuration = "gpu" if given.full else "cpu"
    settings = Settings(
        configuration=configuration,
        data=given.data if given.data.startswith("hf:") else str(Path(given.data).resolve()),
        model=given.model,
        problems=given.problems or PROBLEMS[configuration],
        sft=given.sft,
        rl=given.rl,
    )
    out = given.out.resolve()
    check_settings(settings, out)
    for stage in stages(settings, out):
        run_stage(stage, out / "stages.jsonl")
    print(show_results(out), end="")


if __name__ == "__main__":
    main()
