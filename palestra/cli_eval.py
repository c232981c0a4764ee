"""`palestra eval ENV --model …`: the success of a policy on held-out tasks, with its interval."""

from __future__ import annotations

import asyncio
import difflib
import json
import math
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from palestra.endpoint import Endpoint, Price, Usage
from palestra.envs import Env, registry
from palestra.rollout.driver import Limits
from palestra.rollout.endpoint_policy import EndpointPolicy
from palestra.rollout.evaluate import Evaluation, evaluate
from palestra.rollout.policy import OraclePolicy, Policy
from palestra.rollout.random_policy import RandomPolicy
from palestra.trainer.model_folder import find_model_folder
from palestra.types import Episode, Sampling, Task

ALARMING_MASKED_SHARE = 0.02

# One reply: reasoning models take minutes. The driver's own limit holds above it.
ENDPOINT_TIMEOUT_S = 300.0


@dataclass(frozen=True, kw_only=True, slots=True)
class EvalOptions:
    """What the command line says.

    `model` is a folder, "oracle" or "random", or a name that the server at the URL `endpoint`
    knows. Its key is in the environment variable `api_key_env`; `price` is what a million prompt
    and completion tokens cost.
    """

    env: str
    model: str
    split: str
    n: int
    seed: int
    temperature: float
    max_tokens: int
    context_length: int
    max_concurrent: int
    out: Path | None
    endpoint: str | None = None
    api_key_env: str = "OPENAI_API_KEY"
    price: tuple[float, float] | None = None


def run_eval(options: EvalOptions, *, as_json: bool) -> int:
    """Evaluate and print the figures; 1 if not a single episode got a score.

    Raises:
        ValueError: unknown environment or split, no such model folder, or one without a chat
            template, no oracle, an endpoint that is none, without its key, or that refuses every
            request, or an output folder in use.
    """
    make_env = _maker(options)
    env = make_env()
    tasks: Sequence[Task] | None = getattr(env, "tasks", None)
    if tasks is None:
        raise ValueError(f"{options.env} has no list of tasks to evaluate on")
    tasks = tasks[: options.n]
    with ExitStack() as cleanup:
        policy = cleanup.enter_context(_open_policy(options, env))
        run = recorder = None
        if options.out is not None:
            from palestra.rollout.recorder import Recorder
            from palestra.trainer.run_dir import RunDir

            run = cleanup.enter_context(RunDir(options.out))
            recorder = cleanup.enter_context(Recorder(options.out / "episodes" / "eval.jsonl"))
        evaluation = asyncio.run(
            evaluate(
                make_env,
                tasks,
                policy,
                max_concurrent=options.max_concurrent,
                limits=Limits(max_total_tokens=options.context_length),
                sampling=Sampling(temperature=options.temperature, max_tokens=options.max_tokens),
                seed=options.seed,
                recorder=recorder,
                on_episode=cleanup.enter_context(_progress(len(tasks))),
            )
        )
        if evaluation.n == 0 and isinstance(policy, EndpointPolicy) and policy.broken:
            raise ValueError(policy.broken.detail)
        figures = _figures(options, evaluation)
        if isinstance(policy, EndpointPolicy):
            figures["endpoint_usage"] = policy.usage.metrics()
        if run is not None:
            run.write_summary(figures)
    if as_json:
        print(json.dumps(figures, indent=2))
    else:
        _print_table(options, evaluation)
        if isinstance(policy, EndpointPolicy):
            print(_usage_line(policy.usage))
    return 0 if evaluation.n else 1


def _maker(options: EvalOptions) -> Callable[[], Env]:
    return lambda: registry.make(options.env, split=options.split)


@contextmanager
def _open_policy(options: EvalOptions, env: Env) -> Iterator[Policy]:
    if options.endpoint is not None:
        yield _endpoint_policy(options)
    elif options.model == "oracle":
        yield _oracle(options.env, env)
    elif options.model == "random":
        yield RandomPolicy()
    else:
        near = difflib.get_close_matches(options.model, ["oracle", "random"], n=1)
        if near and not Path(options.model).exists():
            raise ValueError(f"there is no model folder {options.model}: did you mean {near[0]}?")
        find_model_folder(options.model)
        with _loaded(options) as policy:
            yield policy


def _endpoint_policy(options: EvalOptions) -> EndpointPolicy:
    assert options.endpoint is not None
    # Before anything is asked: an error of the URL's form looks like a server that is not there.
    url = urlsplit(options.endpoint)
    if url.scheme not in ("http", "https") or not url.hostname:
        raise ValueError(
            f"--endpoint must be a URL such as http://localhost:8000/v1, got {options.endpoint!r}"
        )
    key = os.environ.get(options.api_key_env)
    if not key:
        raise ValueError(
            f"no key for the endpoint: set {options.api_key_env} (to any word for a server without "
            "keys), or name another variable with --api-key-env"
        )
    prices = {}
    if options.price is not None:
        prompt, completion = options.price
        prices[options.model] = Price(prompt=prompt, completion=completion)
    endpoint = Endpoint(
        options.endpoint,
        key,
        prices=prices,
        concurrency=options.max_concurrent,
        timeout_s=ENDPOINT_TIMEOUT_S,
    )
    return EndpointPolicy(endpoint, options.model)


def _oracle(id: str, env: Env) -> Policy:
    """Plays what the environment's own `solve(task, messages)` says: the ceiling of its scores."""
    solve = getattr(env, "solve", None)
    if solve is None:
        raise ValueError(
            f"{id} has no oracle: give its class a method solve(task, messages) that returns the "
            "next reply"
        )
    return OraclePolicy(solve)


@contextmanager
def _loaded(options: EvalOptions) -> Iterator[Policy]:
    """The policy of a Hugging Face folder, on the embedded engine."""
    from palestra.rollout.engine_hf import HFEngine
    from palestra.rollout.policy import TokenPolicy
    from palestra.trainer.load import load_policy

    model, tokenizer, chat_format = load_policy(options.model)
    engine = HFEngine(
        model,
        stop_ids=chat_format.stop_ids,
        max_slots=options.max_concurrent,
        context_length=options.context_length,
        tokenizer=tokenizer,
    )
    try:
        yield TokenPolicy(engine, chat_format)
    finally:
        engine.close()


@contextmanager
def _progress(total: int) -> Iterator[Callable[[Episode], None]]:
    """A progress bar on a terminal, nothing elsewhere."""
    from rich.console import Console
    from rich.progress import Progress

    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not sys.stderr.isatty()) as progress:
        bar = progress.add_task("episodes", total=total)
        yield lambda episode: progress.advance(bar)


def _figures(options: EvalOptions, evaluation: Evaluation) -> dict[str, Any]:
    asked = {**asdict(options), "out": str(options.out) if options.out else None}
    figures = {
        # JSON has no NaN: a mean of nothing is null.
        name: None if isinstance(value, float) and math.isnan(value) else value
        for name, value in asdict(evaluation).items()
    }
    return {**asked, **figures}


def _print_table(options: EvalOptions, evaluation: Evaluation) -> None:
    masked = sum(evaluation.masked.values())
    share = masked / max(1, masked + evaluation.n)
    interval = f"[{evaluation.low:.3f}, {evaluation.high:.3f}] at 95%"
    rows = {
        f"{options.env} ({options.split})": f"{options.model}, seed {options.seed}",
        "mean score": f"{evaluation.mean:.3f}  {interval}",
        "scored episodes": str(evaluation.n),
        "masked": f"{masked} ({share:.1%}){_counts(evaluation.masked)}",
        "mean, masked as 0": f"{evaluation.mean_with_masked_as_zero:.3f}",
        "turns per episode": f"{evaluation.mean_turns:.2f}",
        "tokens per episode": f"{evaluation.mean_tokens:.1f}",
        "ended by": _counts(evaluation.stop_reasons).strip(": ") or "none",
        "tool errors": _counts(evaluation.tool_errors).strip(": ") or "none",
    }
    width = max(map(len, rows))
    for name, value in rows.items():
        print(f"{name:<{width}}  {value}")
    if share > ALARMING_MASKED_SHARE:
        print(
            f"palestra: {share:.1%} of the episodes could not be scored, through no fault of the "
            "policy: see the causes above",
            file=sys.stderr,
        )


def _usage_line(usage: Usage) -> str:
    cost = "" if usage.unpriced else f", cost {usage.cost:.4f}"
    return (
        f"the endpoint had {usage.requests} requests ({usage.retries} of them retries) and counted "
        f"{usage.prompt_tokens} prompt and {usage.completion_tokens} completion tokens{cost}"
    )


def _counts(counts: Any) -> str:
    return "".join(
        f"{': ' if index == 0 else ', '}{name} {count}"
        for index, (name, count) in enumerate(sorted(counts.items()))
    )
