"""GRPO: sample groups, score, compare, update, publish, log.

Tool output never trains. Groups whose attempts all came out alike teach nothing and are dropped;
episodes that are unscorable or failed are masked, counted by cause and never become a reward.
"""

from __future__ import annotations

import asyncio
import copy
import json
import random
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from palestra.rollout.episode import count_rewrites
from palestra.rollout.evaluate import Evaluation
from palestra.trainer.advantages import group_relative
from palestra.trainer.batch import Batch, Row, micro_batches, pack, rows_of
from palestra.trainer.config import RLConfig
from palestra.trainer.curriculum import Curriculum
from palestra.trainer.load import load_policy
from palestra.trainer.logprobs import token_logprobs
from palestra.trainer.losses import clipped_policy_loss, kl_to_reference
from palestra.trainer.optimizer import Optimizer
from palestra.trainer.run_dir import RunDir
from palestra.trainer.saved_state import (
    SavedState,
    Stage,
    is_due,
    open_stage,
    readable,
    save_state,
)
from palestra.trainer.session import Session, request_of, tasks_of
from palestra.trainer.transcripts import write_transcripts
from palestra.types import Episode, Outcome, Sampling, Task

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Progress = Callable[[int, dict[str, Any]], None]
Group = list[Episode]

_TRANSCRIPTS_PER_STEP = 8
_BEST = "best"
_EVALUATION = "evaluation.json"


@dataclass(frozen=True, kw_only=True, slots=True)
class RLResult:
    """What a run came to: the checkpoint that was best on held-out tasks, and the last metrics."""

    checkpoint: Path
    steps: int
    best_step: int
    best: Evaluation


def train(
    config: RLConfig,
    *,
    run: RunDir | None = None,
    resume: bool = False,
    progress: Progress = lambda step, metrics: None,
) -> RLResult:
    """Improve `config.model` in `config.env` and write the run to `config.out`.

    With `resume`, the run that is there goes on from its last saved state. A `run` already begun
    takes this stage in instead, which then saves no state.

    Raises:
        ValueError: bad configuration, unknown environment or model, or the run directory exists,
            or holds no run that could be resumed with this configuration.
    """
    tasks = tasks_of(config, config.split)

    def open_session(folder: Path | None) -> Session:
        return Session.open(config, folder=folder)

    with open_stage(config, run, resume=resume, open_session=open_session) as stage:
        return asyncio.run(_train(stage, tasks, progress))


async def _train(stage: Stage[RLConfig], tasks: Sequence[Task], progress: Progress) -> RLResult:
    config, session, run, state = stage.config, stage.session, stage.run, stage.state
    updates = config.steps * config.updates_per_step * config.minibatches
    optimizer = Optimizer(session.model, config, updates=updates)
    reference = _reference(config, session, state)
    curriculum = Curriculum(
        len(tasks), per_step=config.tasks_per_step, revisit=config.revisit, seed=config.seed
    )
    if state is None:
        best = await session.evaluate(config, seed=config.seed)
        first, best_step, version, taken = best.mean, 0, 0, 0
        _save_best(run, session, best, best_step)
        progress(0, {"heldout": best.mean})
    else:
        best, best_step = _read_best(run)
        taken = state.step
        with readable(state.folder):
            first, version = state.values["heldout_before"], state.values["version"]
            curriculum.failures |= {int(k): v for k, v in state.values["failures"].items()}
            optimizer.load(state.folder)
        await session.rollouts.publish(version)
        progress(taken, {"heldout": best.mean})
    for step in range(taken + 1, config.steps + 1):
        started = time.perf_counter()
        chosen = curriculum.draw(step)
        groups = await _sample_groups(config, session, [tasks[i] for i in chosen], run, step)
        _require_scored(groups, run, step)
        _record(curriculum, chosen, tasks, groups)
        sampled = time.perf_counter()
        rows, advantages = _rows(groups, config, step)
        metrics = _describe(groups, advantages)
        metrics["learning_rate"] = optimizer.learning_rate
        if rows:
            metrics |= _update(session.model, reference, optimizer, rows, config, step)
        trained = time.perf_counter()
        if rows:
            await session.rollouts.publish(version := step)
        metrics["seconds_sample"] = sampled - started
        metrics["seconds_train"] = trained - sampled
        metrics["seconds_publish"] = time.perf_counter() - trained
        if step % config.eval_every == 0 or step == config.steps:
            evaluation = await session.evaluate(config, seed=config.seed)
            metrics["heldout"] = evaluation.mean
            metrics["heldout_low"], metrics["heldout_high"] = evaluation.low, evaluation.high
            if evaluation.mean >= best.mean:  # of equals, the one that has trained more
                best, best_step = evaluation, step
                _save_best(run, session, best, best_step)
            shown = [episode for group in groups for episode in group][:_TRANSCRIPTS_PER_STEP]
            write_transcripts(run, session, shown, "rl", step, "train", advantages)
        if config.checkpoint_every is not None and step % config.checkpoint_every == 0:
            run.checkpoint(f"step_{step:05d}", session.save_policy)
        run.log("rl", step, metrics)
        progress(step, metrics)
        goal = config.stop_at_success
        if goal is not None and metrics.get("heldout", 0.0) >= goal:
            break
        if is_due(config, step):
            failures = curriculum.failures
            values = {"heldout_before": first, "version": version, "failures": failures}
            save_state(run, session, optimizer, step, values)
    checkpoint = run.path / "checkpoints" / _BEST
    run.write_summary(
        {
            "steps": step,
            "best_step": best_step,
            "heldout_before": first,
            "heldout_after": best.mean,
            "heldout_after_low": best.low,
            "heldout_after_high": best.high,
            "heldout_n": best.n,
            "checkpoint": str(checkpoint),
        }
    )
    return RLResult(checkpoint=checkpoint, steps=step, best_step=best_step, best=best)


def _reference(
    config: RLConfig, session: Session, state: SavedState | None
) -> PreTrainedModel | None:
    """The first policy, where the KL to it is in the loss or measured."""
    if config.kl_coefficient == 0 and not config.log_kl:
        return None
    if state is None:
        return copy.deepcopy(session.model)
    return load_policy(config.model, device=config.device, dtype=config.dtype)[0]


async def _sample_groups(
    config: RLConfig, session: Session, tasks: Sequence[Task], run: RunDir, step: int
) -> list[Group]:
    """`group_size` attempts at each of the tasks, all recorded."""
    request = request_of(
        config,
        tasks,
        config.split,
        n_per_task=config.group_size,
        sampling=Sampling(temperature=config.temperature, max_tokens=config.max_tokens),
        seed=random.Random(f"{config.seed}-{step}-sample").getrandbits(48),
        record_to=str(_record_of(run, step)),
    )
    groups: dict[str, Group] = {}
    async for episode in session.rollouts.play(request):
        groups.setdefault(episode.task.id, []).append(episode)
    # In task and attempt order, whichever finished first: the same seed trains the same batch.
    return [
        sorted(groups[task_id], key=lambda e: (e.sample, e.attempt)) for task_id in sorted(groups)
    ]


def _require_scored(groups: list[Group], run: RunDir, step: int) -> None:
    """Raise ValueError where nothing that was sampled got a score: more steps would not, either."""
    episodes = [episode for group in groups for episode in group]
    if any(episode.outcome is Outcome.SCORED for episode in episodes):
        return
    # Out of the way of a resumed run, which samples the step again.
    path = _record_of(run, step)
    kept = path.replace(path.with_suffix(".unscored.jsonl"))
    causes = dict(Counter(episode.cause or "unknown" for episode in episodes))
    raise ValueError(
        f"none of the {len(episodes)} episodes of step {step} was scored ({causes}): see {kept}, "
        "and go on with --resume when the cause is mended"
    )


def _record_of(run: RunDir, step: int) -> Path:
    return run.path / "episodes" / f"step_{step:05d}.jsonl"


def _record(
    curriculum: Curriculum, chosen: list[int], tasks: Sequence[Task], groups: list[Group]
) -> None:
    """Tell the curriculum how the attempts at each task went."""
    groups_by_id = {group[0].task.id: group for group in groups}
    for index in chosen:
        group = groups_by_id.get(tasks[index].id, [])
        curriculum.record(index, [e.score.value for e in group if e.score is not None])


def _rows(groups: list[Group], config: RLConfig, step: int) -> tuple[list[Row], dict[str, float]]:
    """Training rows of the groups that teach something, and each scored episode's advantage."""
    scored = [[e for e in group if e.outcome is Outcome.SCORED] for group in groups]
    rewards = {e.id: e.reward for group in scored for e in group}
    if config.shuffle_rewards:
        values = list(rewards.values())
        random.Random(f"{config.seed}-{step}-shuffle").shuffle(values)
        rewards = dict(zip(rewards, values, strict=True))
    rows: list[Row] = []
    advantages: dict[str, float] = {}
    for group in scored:
        if len(group) < 2:
            continue
        rewards_G = torch.tensor([rewards[episode.id] for episode in group])
        advantages_G = group_relative(rewards_G, normalize=config.normalize_advantages)
        for episode, advantage in zip(group, advantages_G.tolist(), strict=True):
            advantages[episode.id] = advantage
            if advantages_G.any():
                rows += rows_of(episode, advantage)
    return rows, advantages


def _update(
    model: PreTrainedModel,
    reference: PreTrainedModel | None,
    optimizer: Optimizer,
    rows: list[Row],
    config: RLConfig,
    step: int,
) -> dict[str, Any]:
    """The step's optimizer updates; returns what the first measured: the policy that sampled."""
    metrics: dict[str, Any] = {}
    for part in _minibatches(rows, config, step):
        # A KL that is no part of the loss is measured once.
        is_compared = config.kl_coefficient > 0 or not metrics
        measured = _accumulate(model, reference if is_compared else None, part, config)
        metrics = measured | metrics
        # Ratios leave 1 only after the first update.
        metrics["clip_fraction"] = measured["clip_fraction"]
        metrics["grad_norm"] = optimizer.step()
    return {**metrics, "tokens": sum(len(row.advantages) for row in rows)}


def _minibatches(rows: list[Row], config: RLConfig, step: int) -> Iterator[list[Row]]:
    """The rows of each optimizer update: every pass deals all rows out anew, none is left out."""
    deal = random.Random(f"{config.seed}-{step}-deal")
    for _ in range(config.updates_per_step):
        deck = deal.sample(rows, len(rows)) if config.minibatches > 1 else rows
        for first in range(min(config.minibatches, len(deck))):
            yield deck[first :: config.minibatches]


def _accumulate(
    model: PreTrainedModel, reference: PreTrainedModel | None, rows: list[Row], config: RLConfig
) -> dict[str, Any]:
    """Add the gradient of the loss, averaged over every trained token of `rows`."""
    total = sum(sum(row.loss_mask) for row in rows)
    sums: defaultdict[str, float] = defaultdict(float)
    worst = 0.0
    for chunk in micro_batches(rows, config.micro_batch_tokens):
        batch = pack(chunk, model.device)
        logprobs_S, entropies_S = token_logprobs(model, batch)
        output = clipped_policy_loss(
            logprobs_S, batch, clip_low=config.clip_low, clip_high=config.clip_high
        )
        loss_sum = output.loss_sum
        if reference is not None:
            kl = kl_to_reference(logprobs_S, _reference_logprobs(reference, batch))
            loss_sum = loss_sum + config.kl_coefficient * kl.loss_sum
            sums["kl_ref"] += kl.loss_sum.item()
        (loss_sum / total).backward()
        differences_S = (logprobs_S.detach() - batch.sampled_logprobs_S).abs()
        worst = max(worst, differences_S.max().item())
        for name, value in output.metrics.items():
            sums[name] += value
        sums["loss"] += loss_sum.item()
        sums["entropy"] += entropies_S.sum().item()
        sums["logprob_diff_mean"] += differences_S.sum().item()
    means = {name: value / total for name, value in sums.items()}
    return {**means, "logprob_diff_max": worst}


def _reference_logprobs(reference: PreTrainedModel, batch: Batch) -> torch.Tensor:
    with torch.no_grad():
        logprobs_S, _ = token_logprobs(reference, batch)
    return logprobs_S


def _describe(groups: list[Group], advantages: dict[str, float]) -> dict[str, Any]:
    """What the sampled episodes were like."""
    episodes = [episode for group in groups for episode in group]
    scored = [e for e in episodes if e.outcome is Outcome.SCORED]
    tool_errors: Counter[str] = Counter()
    for episode in episodes:
        tool_errors.update(episode.tool_errors())
    kept = sum(any(advantages.get(e.id) for e in group) for group in groups)
    count = max(1, len(scored))
    rewrites = sum(map(count_rewrites, scored)) / count
    return {
        "reward_mean": sum(e.reward for e in scored) / count,
        "score_mean": sum(e.score.value for e in scored if e.score is not None) / count,
        "turns_mean": sum(len(e.turns) for e in scored) / count,
        "completion_tokens_mean": sum(len(t.completion_ids) for e in scored for t in e.turns)
        / count,
        # Turns that begin a branch, whose prompt is computed and trained anew.
        **({"rewrites": rewrites} if rewrites else {}),
        "episodes": len(episodes),
        "groups_kept": kept,
        "groups_dropped": len(groups) - kept,
        "tool_errors": dict(tool_errors),
        "masked": dict(Counter(e.cause or "unknown" for e in episodes if e not in scored)),
    }


def _save_best(run: RunDir, session: Session, evaluation: Evaluation, step: int) -> None:
    """Replace the best checkpoint; beside the policy lies what it scored, and after which step."""

    def save(folder: Path) -> None:
        session.save_policy(folder)
        text = json.dumps({"step": step, **asdict(evaluation)}, indent=2) + "\n"
        (folder / _EVALUATION).write_text(text, encoding="utf-8")

    run.checkpoint(_BEST, save)


def _read_best(run: RunDir) -> tuple[Evaluation, int]:
    """What the best checkpoint of an interrupted run scored, and after which step."""
    path = run.path / "checkpoints" / _BEST / _EVALUATION
    with readable(path):
        values = json.loads(path.read_text(encoding="utf-8"))
        step = int(values.pop("step"))
        return Evaluation(**values), step
