"""The `palestra` command: parse the arguments, run one command, answer errors in one line.

Whatever the user can cause ends as `palestra: what is wrong and how to fix it` on standard error
with exit status 2 and no traceback (PALESTRA_DEBUG=1 shows it). Commands import what they need when
they run, so that `palestra --help` is instant.
"""

from __future__ import annotations

import argparse
import difflib
import errno
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

import palestra
from palestra.cli_numbers import AT_LEAST_ONE, NOT_NEGATIVE, SEED
from palestra.cli_serve_arguments import add_serve

DESCRIPTION = (
    "Train tool-using language-model agents by reinforcement learning from verifiable rewards."
)

# Which extra of palestra brings a package that is missing.
EXTRA_OF = {
    "datasets": "train",
    "fastapi": "serve",
    "httptools": "serve",
    "matplotlib": "plot",
    "peft": "train",
    "prometheus_client": "serve",
    "safetensors": "train",
    "tensorboard": "train",
    "tokenizers": "train",
    "tomli_w": "train",
    "torch": "train",
    "transformers": "train",
    "uvicorn": "serve",
}

REMEDY_OF = {
    errno.ENOENT: "check the path",
    errno.EEXIST: "choose another path",
    errno.EACCES: "check its permissions",
    errno.EROFS: "choose a folder that can be written",
    errno.EISDIR: "name a file in it",
    errno.ENOTDIR: "name a folder",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return the exit status: 0, 2 for a user's error, 130 for Ctrl-C."""
    try:
        arguments = _build_parser().parse_args(argv)
        status: int = arguments.run(arguments)
        sys.stdout.flush()
        return status
    except KeyboardInterrupt as stop:
        said = str(stop) or "what was written so far stays readable"
        return _report(f"interrupted: {said}", status=130)
    except BrokenPipeError:  # the reader (`head`, a closed pager) has gone
        _abandon_stdout()
        return 0
    except Exception as error:
        message = _explain(error)
        if message is None or os.environ.get("PALESTRA_DEBUG"):
            raise
        try:
            sys.stdout.flush()
        except OSError:
            _abandon_stdout()
        return _report(message)


def _abandon_stdout() -> None:
    """Let what is still buffered go nowhere: at exit Python would complain that it cannot write."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _report(message: str, status: int = 2) -> int:
    # One line whatever the message holds: a validation error of pydantic has several.
    print(f"palestra: {' '.join(message.split())}", file=sys.stderr)
    return status


def _explain(error: Exception) -> str | None:
    """What the user can do about an error; None if it is ours, to be shown with its traceback."""
    full = isinstance(error, OSError) and error.errno in {errno.ENOSPC, errno.EDQUOT}
    # The libraries that write weights report a full disk by errors of their own.
    if full or "No space left on device" in str(error):
        where = f"{error.filename}: " if isinstance(error, OSError) and error.filename else ""
        return f"{where}the disk is full: free some space (what was written stays readable)"
    if isinstance(error, ModuleNotFoundError):
        package = (error.name or "").partition(".")[0]
        if package not in EXTRA_OF:
            return None  # a broken installation, not something the user typed
        return f"the package {package} is missing: pip install 'palestra[{EXTRA_OF[package]}]'"
    if isinstance(error, OSError) and error.strerror:
        where = f"{error.filename}: " if error.filename else ""
        remedy = REMEDY_OF.get(error.errno or 0)
        return f"{where}{error.strerror.lower()}" + (f": {remedy}" if remedy else "")
    if isinstance(error, (ValueError, OSError)):
        return str(error) or type(error).__name__
    return None


class _Parser(argparse.ArgumentParser):
    """An argument parser whose errors are ValueErrors that name the nearest known choice."""

    def error(self, message: str) -> NoReturn:
        message = re.sub(r"^argument (COMMAND|STAGE): ", "", message)
        raise ValueError(f"{message} (see {self.prog} --help)")

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if action.choices is not None and value not in action.choices:
            known = [str(choice) for choice in action.choices]
            near = difflib.get_close_matches(str(value), known, n=1)
            hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(known)}"
            raise argparse.ArgumentError(
                action, f"unknown {str(action.metavar).lower()} {value!r}: {hint}"
            )


def _build_parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="palestra",
        description=DESCRIPTION,
        epilog="Errors are one line; PALESTRA_DEBUG=1 in the environment adds the traceback.",
    )
    parser.add_argument("--version", action=_Version)
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    _add_envs(commands.add_parser("envs", help="list, show or create environments"))
    _add_demo(commands.add_parser("demo", help="train a small tool agent and write its report"))
    _add_train(commands.add_parser("train", help="run one training stage from a TOML file"))
    _add_eval(commands.add_parser("eval", help="measure a policy on an environment's tasks"))
    add_serve(commands.add_parser("serve", help="put a policy behind the OpenAI API"))
    _add_check(commands.add_parser("check", help="can an environment or a verifier be trusted?"))
    _add_doctor(commands.add_parser("doctor", help="what this machine offers"))
    return parser


class _Version(argparse.Action):
    def __init__(self, option_strings: Sequence[str], dest: str) -> None:
        super().__init__(option_strings, dest, nargs=0, help="print the version and exit")

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        print(f"palestra {palestra.__version__}")
        parser.exit()


def _add_envs(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(metavar="COMMAND", required=True)
    listing = actions.add_parser("list", help="every registered environment")
    listing.add_argument("--json", action="store_true", help="objects with id and description")
    show = actions.add_parser("show", help="an environment's tools, tasks and an example")
    show.add_argument("id", metavar="ID", help="for example palestra/Arithmetic-v0")
    new = actions.add_parser("new", help="write a working environment with its test")
    new.add_argument("name", metavar="NAME", help="for example price_list")
    new.add_argument("--out", type=Path, metavar="DIR", help="where to (default: ./NAME)")

    def run_list(arguments: argparse.Namespace) -> int:
        from palestra import cli_envs

        return cli_envs.list_envs(as_json=arguments.json)

    def run_show(arguments: argparse.Namespace) -> int:
        from palestra import cli_envs

        return cli_envs.show_env(arguments.id)

    def run_new(arguments: argparse.Namespace) -> int:
        from palestra import cli_new

        return cli_new.write_environment(arguments.name, arguments.out)

    listing.set_defaults(run=run_list)
    show.set_defaults(run=run_show)
    new.set_defaults(run=run_new)


def _add_check(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("env", metavar="ENV", nargs="?", help="an environment's id, to check it")
    parser.add_argument(
        "--verifier",
        metavar="NAME",
        help="number, …, module:function or reasoning_gym:DATASET, to audit it",
    )
    parser.add_argument(
        "--tasks", metavar="SOURCE", help="tasks with references: a .jsonl file, or an environment"
    )
    parser.add_argument(
        "--n", type=AT_LEAST_ONE, default=20, help="tasks, or episodes of ENV (default: 20)"
    )
    parser.add_argument("--json", action="store_true", help="print what was found as one object")

    def run(arguments: argparse.Namespace) -> int:
        from palestra import cli_check

        if arguments.verifier is not None:
            source = arguments.tasks or arguments.env
            return cli_check.check_verifier(
                arguments.verifier, source, limit=arguments.n, as_json=arguments.json
            )
        if arguments.env is None:
            raise ValueError("name an environment, or a verifier with --verifier (see --help)")
        return cli_check.check_environment(arguments.env, episodes=arguments.n)

    parser.set_defaults(run=run)


def _add_doctor(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="one object, for scripts")

    def run(arguments: argparse.Namespace) -> int:
        from palestra import cli_doctor

        return cli_doctor.report(as_json=arguments.json)

    parser.set_defaults(run=run)


def _add_demo(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--out", type=Path, metavar="DIR", help="default: a fresh runs/… folder")
    parser.add_argument("--seed", type=SEED, default=0, metavar="N", help="default: 0")
    parser.add_argument(
        "--engine",
        choices=["hf", "vllm", "sglang"],
        default="hf",
        help="what samples for GRPO: this process (default) or a server (`make vllm` installs one)",
    )
    parser.add_argument(
        "--control", action="store_true", help="deal rewards out at random: nothing may be learned"
    )
    parser.add_argument(
        "--rehearsal", action="store_true", help="a few steps of everything, in seconds"
    )

    def run(arguments: argparse.Namespace) -> int:
        from palestra import cli_demo

        return cli_demo.run(
            arguments.out,
            seed=arguments.seed,
            engine=arguments.engine,
            control=arguments.control,
            rehearsal=arguments.rehearsal,
        )

    parser.set_defaults(run=run)


class _StageParser(_Parser):
    """Lists the stage's settings, which are read from their definition only when asked for."""

    def format_help(self) -> str:
        from palestra.cli_train import describe_settings

        return f"{super().format_help()}\n{describe_settings(self.prog.split()[-1])}"


def _add_train(parser: argparse.ArgumentParser) -> None:
    stages = parser.add_subparsers(metavar="STAGE", required=True, parser_class=_StageParser)
    for name, what in {
        "sft": "supervised fine-tuning on demonstrations",
        "rl": "reinforcement learning (GRPO) in an environment",
    }.items():
        stage = stages.add_parser(name, help=what)
        stage.add_argument("config", metavar="CONFIG.toml", type=Path)
        stage.add_argument(
            "overrides", metavar="key=value", nargs="*", default=[], help="single settings"
        )
        stage.add_argument(
            "--resume",
            action="store_true",
            help="go on with the interrupted run that is in `out` (last, or before CONFIG.toml)",
        )
        stage.set_defaults(run=_run_train, stage=name)


def _run_train(arguments: argparse.Namespace) -> int:
    from palestra import cli_train

    return cli_train.run_stage(
        arguments.stage, arguments.config, arguments.overrides, resume=arguments.resume
    )


def _add_eval(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("env", metavar="ENV", help="an environment's id")
    parser.add_argument(
        "--model",
        required=True,
        metavar="MODEL",
        help="a model folder, hub id, smollm2, oracle or random; with --endpoint the name that it "
        "is served under",
    )
    parser.add_argument(
        "--endpoint",
        metavar="URL",
        help="ask an OpenAI-compatible server, such as http://localhost:8000/v1",
    )
    parser.add_argument(
        "--api-key-env",
        metavar="NAME",
        default="OPENAI_API_KEY",
        help="the environment variable with the endpoint's key (default: OPENAI_API_KEY)",
    )
    parser.add_argument(
        "--price",
        nargs=2,
        type=NOT_NEGATIVE,
        metavar=("PROMPT", "COMPLETION"),
        help="what a million tokens cost at the endpoint, to report the cost",
    )
    parser.add_argument("--split", default="test", help="default: test")
    parser.add_argument("--n", type=AT_LEAST_ONE, default=500, help="tasks (default: 500)")
    parser.add_argument("--seed", type=SEED, default=0, metavar="N", help="default: 0")
    parser.add_argument("--temperature", type=NOT_NEGATIVE, default=1.0, metavar="T")
    parser.add_argument("--max-tokens", type=AT_LEAST_ONE, default=512, help="per turn")
    parser.add_argument("--context-length", type=AT_LEAST_ONE, default=1024, metavar="TOKENS")
    parser.add_argument("--max-concurrent", type=AT_LEAST_ONE, default=64, metavar="EPISODES")
    parser.add_argument("--out", type=Path, metavar="DIR", help="write episodes and summary here")
    parser.add_argument("--json", action="store_true", help="print the figures as one object")

    def run(arguments: argparse.Namespace) -> int:
        from palestra import cli_eval

        options = cli_eval.EvalOptions(
            env=arguments.env,
            model=arguments.model,
            split=arguments.split,
            n=arguments.n,
            seed=arguments.seed,
            temperature=arguments.temperature,
            max_tokens=arguments.max_tokens,
            context_length=arguments.context_length,
            max_concurrent=arguments.max_concurrent,
            out=arguments.out,
            endpoint=arguments.endpoint,
            api_key_env=arguments.api_key_env,
            price=tuple(arguments.price) if arguments.price else None,
        )
        return cli_eval.run_eval(options, as_json=arguments.json)

    parser.set_defaults(run=run)
