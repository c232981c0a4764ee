"""Supervised fine-tuning: imitate demonstrations, until a measure says that it is enough."""

from __future__ import annotations

import asyncio
import hashlib
import random
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from palestra.rollout.evaluate import Evaluation
from palestra.trainer.batch import Row, micro_batches, pack
from palestra.trainer.config import SFTConfig
from palestra.trainer.demonstrations import demonstration_rows, read_demonstrations
from palestra.trainer.logprobs import token_logprobs
from palestra.trainer.losses import negative_log_likelihood
from palestra.trainer.optimizer import Optimizer
from palestra.trainer.run_dir import RunDir
from palestra.trainer.saved_state import Stage, is_due, open_stage, readable, save_state
from palestra.trainer.session import Session

Progress = Callable[[int, dict[str, float]], None]


@dataclass(frozen=True, kw_only=True, slots=True)
class SFTResult:
    """What a run came to."""

    checkpoint: Path
    steps: int
    evaluation: Evaluation | None  # the last one, in config.env


def train(
    config: SFTConfig,
    *,
    run: RunDir | None = None,
    resume: bool = False,
    progress: Progress = lambda step, metrics: None,
) -> SFTResult:
    """Fine-tune `config.model` on `config.data` and write the run to `config.out`.

    With `resume`, the run that is there goes on from its last saved state. A `run` already begun
    takes this stage in instead, which then saves no state.

    Raises:
        ValueError: bad configuration or demonstrations, or the run directory exists, or holds no
            run that could be resumed with this configuration.
    """
    demonstrations = read_demonstrations(config.data)

    def open_session(folder: Path | None) -> Session:
        return Session.open(config, demonstrations, folder)

    with open_stage(config, run, resume=resume, open_session=open_session) as stage:
        rows = [
            row
            for messages, tools in demonstrations
            for row in demonstration_rows(messages, tools, stage.session.chat_format)
        ]
        return asyncio.run(_train(stage, rows, progress))


async def _train(stage: Stage[SFTConfig], rows: list[Row], progress: Progress) -> SFTResult:
    config, session, run, state = stage.config, stage.session, stage.run, stage.state
    data = hashlib.sha256(config.data.read_bytes()).hexdigest()
    optimizer = Optimizer(session.model, config, updates=config.steps)
    evaluation: Evaluation | None = None
    step = 0
    if state is not None:
        step = state.step
        with readable(state.folder):
            optimizer.load(state.folder)
            if (last := state.values["evaluation"]) is not None:
                evaluation = Evaluation(**last)
            known = state.values["data_sha256"]
        if known != data:
            raise ValueError(f"{config.data} is not what the run was begun with: give the same")
        progress(step, {})
    for batch in islice(_batches(rows, config), step, config.steps):
        started = time.perf_counter()
        step += 1
        metrics: dict[str, float] = {"learning_rate": optimizer.learning_rate}
        metrics["loss"] = _accumulate(session, batch, config.micro_batch_tokens)
        metrics["grad_norm"] = optimizer.step()
        metrics["seconds"] = time.perf_counter() - started
        is_worth_it = config.eval_below_loss is None or metrics["loss"] < config.eval_below_loss
        if config.env is not None and is_worth_it and step % config.eval_every == 0:
            await session.rollouts.publish(step)
            evaluation = await session.evaluate(config, seed=config.seed)
            metrics["success"] = evaluation.mean
        run.log("sft", step, metrics)
        progress(step, metrics)
        await asyncio.sleep(0)  # where asyncio lets Ctrl-C in
        goal = config.stop_at_success
        if goal is not None and "success" in metrics and metrics["success"] >= goal:
            break
        if is_due(config, step):
            last = None if evaluation is None else asdict(evaluation)
            save_state(run, session, optimizer, step, {"evaluation": last, "data_sha256": data})
    checkpoint = run.checkpoint("sft", session.save_policy)
    summary: dict[str, Any] = {"steps": step, "checkpoint": str(checkpoint)}
    if evaluation is not None:
        summary |= {"heldout_after": evaluation.mean, "heldout_n": evaluation.n}
    run.write_summary(summary)
    return SFTResult(checkpoint=checkpoint, steps=step, evaluation=evaluation)


def _batches(rows: list[Row], config: SFTConfig) -> Iterator[list[Row]]:
    """The rows of each step, for ever: every pass deals all of them out, in another order."""
    shuffle = random.Random(config.seed)
    deck: list[Row] = []
    while True:
        if len(deck) < config.batch_rows:
            deck += shuffle.sample(rows, len(rows))
        while len(deck) < config.batch_rows:  # fewer demonstrations than a batch has rows
            deck += rows
        batch, deck = deck[: config.batch_rows], deck[config.batch_rows :]
        yield batch


def _accumulate(session: Session, rows: list[Row], micro_batch_tokens: int) -> float:
    """Add the gradient of the mean loss over all trained tokens of `rows`; returns that mean."""
    total = sum(sum(row.loss_mask) for row in rows)
    loss = 0.0
    for chunk in micro_batches(rows, micro_batch_tokens):
        batch = pack(chunk, session.model.device)
        logprobs_S, _ = token_logprobs(session.model, batch)
        output = negative_log_likelihood(logprobs_S)
        (output.loss_sum / total).backward()
        loss += output.loss_sum.item() / total
    return loss
