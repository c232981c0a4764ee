"""The data that flows through palestra: tasks, turns, episodes, scores and outcomes.

Everything here is plain, frozen and free of heavy imports, so that environments, rollouts,
trainers and reports can share it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Literal

# An OpenAI chat message: role, content, tool_calls, tool_call_id, name, reasoning_content.
Message = dict[str, Any]

# An OpenAI tool schema: {"type": "function", "function": {"name", "description", "parameters"}}.
ToolSchema = dict[str, Any]

# The agent's name in an episode that has only one.
AGENT = "agent"


class ToolError(Exception):
    """A tool's complaint that the model reads and may recover from; the episode goes on."""


class Unscorable(Exception):
    """The reference or the judge is at fault, proven on the host; the answer gets no score.

    `cause` is a short stable key under which the masked episode is counted.
    """

    def __init__(self, detail: str = "", *, cause: str = "verifier:reference") -> None:
        super().__init__(detail)
        self.cause = cause


class BadScore(ValueError):
    """A verdict that is none: not finite, or out of range. The verifier's fault, never a reward."""


class Failure(Exception):
    """Our fault or the infrastructure's: the episode is masked and counted under `cause`.

    `cause` is a short stable key such as "tool:search", "engine", "verifier" or "env".
    """

    def __init__(self, cause: str, detail: str) -> None:
        super().__init__(f"{cause}: {detail}")
        self.cause = cause
        self.detail = detail


class Outcome(StrEnum):
    """How an episode ended; the policy cannot choose among these (DESIGN §2).

    `SCORED` trains and counts, whatever the policy provoked. `UNSCORABLE` (reference or judge at
    fault) and `FAILED` (our fault) are masked, counted by cause and never become a reward of 0.
    """

    SCORED = "scored"
    UNSCORABLE = "unscorable"
    FAILED = "failed"


@dataclass(frozen=True, kw_only=True, slots=True)
class Score:
    """A verifier's verdict on one answer.

    `value` lies in [0, 1]. `reward` is what the trainer optimises: any finite float, equal to the
    value unless a rubric says otherwise. `parts` names what the verdict is made of.

    Raises:
        BadScore: value outside [0, 1], or a reward or part that is not finite.
    """

    value: float
    reward: float | None = None
    parts: Mapping[str, float] = field(default_factory=dict)
    explanation: str = ""

    def __post_init__(self) -> None:
        if not 0.0 <= self.value <= 1.0:  # also false for NaN
            raise BadScore(f"a score's value must be between 0 and 1, got {self.value}")
        if self.reward is None:
            object.__setattr__(self, "reward", float(self.value))
        for name, number in {"reward": self.reward, **self.parts}.items():
            if number is None or not math.isfinite(number):
                raise BadScore(f"a score's {name} must be a finite number, got {number}")


@dataclass(frozen=True, kw_only=True, slots=True)
class Task:
    """One problem: the policy sees only `messages`; `answer` and `info` stay on the host."""

    id: str
    messages: tuple[Message, ...]
    answer: Any = None
    info: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, slots=True)
class CallShape:
    """A tool call as a model writes it: JSON of a schema between two texts."""

    prefix: str
    json_schema: Mapping[str, Any]
    suffix: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Structure:
    """What a reply must look like: exactly one of a JSON Schema, literal choices or a regex.

    With a schema may go a `call`, which the reply can be instead. The tokens are not the policy's
    own choice, so they never train.

    Raises:
        ValueError: none or several are given, or a call without a schema.
    """

    json_schema: Mapping[str, Any] | None = None
    choice: tuple[str, ...] | None = None
    regex: str | None = None
    call: CallShape | None = None

    def __post_init__(self) -> None:
        if self.call is not None and self.json_schema is None:
            raise ValueError("a structure with a call needs a json_schema for the other replies")
        given = [name for name in ("json_schema", "choice", "regex") if getattr(self, name)]
        if len(given) != 1:
            raise ValueError(
                "a structure is one of json_schema, choice and regex, got "
                + (" and ".join(given) or "none")
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class Sampling:
    """How tokens are drawn. Training samples with top_p = 1, top_k = 0 (off) and no structure."""

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    max_tokens: int = 512
    seed: int | None = None
    structure: Structure | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class VersionSpan:
    """Completion tokens [start, end) were sampled by weights of this version.

    `kv_after_update` tells what became of the keys that older weights had computed when these came:
    thrown away ("recompute"), or left for these tokens to attend to, those of earlier turns
    included ("keep"). None where the engine was sent no weights, or does not know of it.
    """

    version: int
    start: int
    end: int
    kv_after_update: Literal["recompute", "keep"] | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Completion:
    """What an engine sampled for one prompt.

    `ids` includes the end-of-turn token when one was sampled; `logprobs[i]` is the natural
    log-probability of `ids[i]` under the distribution it was drawn from (temperature and all).
    `stop_reason` is "stop" (end-of-turn token), "length" or "abort".
    """

    ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    stop_reason: str
    version_spans: tuple[VersionSpan, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class ToolResult:
    """The answer to one tool call. `error` is None or the kind of trouble, for counting.

    Kinds: "bad_json", "unknown_tool", "bad_arguments" (missing, extra or mistyped), "cut" (the
    call was truncated), "tool_error" (the tool said no), "timeout", "resources" (memory,
    recursion: provoked by the arguments), "too_many_calls" (more in one reply than allowed).
    Durations take no part in comparisons: the same episode never takes the same time twice.
    """

    call_id: str
    name: str
    content: str
    error: str | None = None
    duration_s: float = field(default=0.0, compare=False)

    def message(self) -> Message:
        """The chat message that carries this result to the model."""
        return {
            "role": "tool",
            "tool_call_id": self.call_id,
            "name": self.name,
            "content": self.content,
        }


@dataclass(frozen=True, kw_only=True, slots=True)
class Turn:
    """One reply of a policy and what the environment made of it.

    `prompt_ids` and `completion_ids` are exactly what the engine was sent and returned, never
    re-tokenized text (both empty for policies without token ids). `parent` is the index of the
    earlier turn whose prompt + completion this prompt extends, or None at a root; turns therefore
    form trees, and training rows are root-to-leaf paths.
    """

    message: Message
    parent: int | None = None
    agent: str = AGENT
    prompt_ids: tuple[int, ...] = ()
    completion_ids: tuple[int, ...] = ()
    logprobs: tuple[float, ...] = ()
    sampling: Sampling | None = None
    version_spans: tuple[VersionSpan, ...] = ()
    stop_reason: str = "stop"
    tool_results: tuple[ToolResult, ...] = ()
    observation: tuple[Message, ...] = ()  # what the environment answered, tool messages included
    replaces: bool = False  # the observation replaces the whole conversation (compaction)
    reward: float = 0.0
    terminated: bool = False
    truncated: bool = False
    timings: Mapping[str, float] = field(default_factory=dict)  # seconds by phase
    # What an endpoint charged: prompt_tokens, completion_tokens and, where prices are known, cost.
    usage: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, slots=True)
class Episode:
    """One attempt at one task.

    `stop_reason`: "answer" (a reply without a tool call, or a submitted answer), "env" (the
    environment ended it), "max_turns", "length" (a reply cut by its token limit), "token_budget"
    (the episode's), "context" (no room, or none to the end of the reply, in the engine's context),
    "deadline", "agent" (an agent program could not go on with what the policy said), "failed".
    `cause` says whose fault an unscorable or failed outcome is, e.g. "tool:search". `scores` and
    `rewards` are by agent; `score` and `reward` are those of the only one.
    """

    id: str
    env_id: str
    task: Task
    prompt: tuple[Message, ...]  # the conversation at reset: system message, task messages
    turns: tuple[Turn, ...]
    outcome: Outcome
    stop_reason: str
    sample: int = 0  # which sample of the task this is: samples of a task make up its groups
    attempt: int = 0  # above 0 where earlier attempts at this sample were not scored
    tools: tuple[ToolSchema, ...] = ()
    cause: str | None = None
    detail: str = ""
    scores: Mapping[str, Score] = field(default_factory=dict)
    rewards: Mapping[str, float] = field(default_factory=dict)
    timings: Mapping[str, float] = field(default_factory=dict)  # seconds by phase

    @property
    def score(self) -> Score | None:
        """The verdict on the only agent; None when there is none."""
        return self.scores.get(AGENT)

    @property
    def reward(self) -> float:
        """The only agent's total reward: its turns' rewards, the final one included."""
        return self.rewards.get(AGENT, 0.0)

    @property
    def messages(self) -> list[Message]:
        """The conversation at the end, the prompt first."""
        conversation = list(self.prompt)
        for turn in self.turns:
            if turn.replaces:
                conversation = list(turn.observation)
            else:
                conversation += [turn.message, *turn.observation]
        return conversation

    def tool_errors(self) -> dict[str, int]:
        """How many tool calls went wrong, by kind (see `ToolResult.error`)."""
        counts: dict[str, int] = {}
        for turn in self.turns:
            for result in turn.tool_results:
                if result.error is not None:
                    counts[result.error] = counts.get(result.error, 0) + 1
        return counts

    def to_json(self) -> str:
        """One line of JSON that `from_json` reads back to an equal episode.

        A turn's prompt repeats what its parent's began with: only the ids after it are written.
        """
        plain = {
            **_fields(self),
            "turns": [_turn_to_plain(turn, self.turns) for turn in self.turns],
        }
        try:
            return json.dumps(plain, default=_fields, ensure_ascii=False, separators=(",", ":"))
        except TypeError:  # a task's mapping whose keys JSON does not have
            return json.dumps(_plain(plain), ensure_ascii=False, separators=(",", ":"))

    @staticmethod
    def from_json(line: str) -> Episode:
        """Read an episode back. Raises ValueError or KeyError if the line is not one."""
        data = json.loads(line)
        task = data.pop("task")
        turns = data.pop("turns")
        scores = data.pop("scores")
        return Episode(
            **{
                **data,
                "outcome": Outcome(data["outcome"]),
                "tools": tuple(data["tools"]),
                "prompt": tuple(data["prompt"]),
                "task": Task(**{**task, "messages": tuple(task["messages"])}),
                "turns": _turns_from_plain(turns),
                "scores": {agent: Score(**score) for agent, score in scores.items()},
            }
        )


def _turn_to_plain(turn: Turn, turns: tuple[Turn, ...]) -> dict[str, Any]:
    plain: dict[str, Any] = _fields(turn)
    if turn.parent is not None:
        known = turns[turn.parent].prompt_ids + turns[turn.parent].completion_ids
        if turn.prompt_ids[: len(known)] == known:
            plain["prompt_ids_after_parent"] = plain.pop("prompt_ids")[len(known) :]
    return plain


def _turns_from_plain(turns: list[dict[str, Any]]) -> tuple[Turn, ...]:
    read: list[Turn] = []
    for plain in turns:
        after = plain.pop("prompt_ids_after_parent", None)
        if after is not None:
            parent = read[plain["parent"]]
            plain["prompt_ids"] = (*parent.prompt_ids, *parent.completion_ids, *after)
        read.append(_turn_from_plain(plain))
    return tuple(read)


def _turn_from_plain(data: dict[str, Any]) -> Turn:
    sampling = data["sampling"]
    return Turn(
        **{
            **data,
            "prompt_ids": tuple(data["prompt_ids"]),
            "completion_ids": tuple(data["completion_ids"]),
            "logprobs": tuple(data["logprobs"]),
            "sampling": None if sampling is None else _sampling_from_plain(sampling),
            "version_spans": tuple(VersionSpan(**span) for span in data["version_spans"]),
            "tool_results": tuple(ToolResult(**result) for result in data["tool_results"]),
            "observation": tuple(data["observation"]),
        }
    )


def _sampling_from_plain(data: dict[str, Any]) -> Sampling:
    structure = data.get("structure")
    if structure is None:
        return Sampling(**data)
    choice, call = structure["choice"], structure.get("call")
    plain = {
        **structure,
        "choice": None if choice is None else tuple(choice),
        "call": None if call is None else CallShape(**call),
    }
    return Sampling(**{**data, "structure": Structure(**plain)})


def _fields(value: Any) -> Any:
    """What `json` asks for where it meets something that is not JSON."""
    names: Mapping[str, Any] | None = getattr(type(value), "__dataclass_fields__", None)
    if names is not None:
        return {name: getattr(value, name) for name in names}
    return dict(value) if isinstance(value, Mapping) else str(value)


def _plain(value: Any) -> Any:
    """Everything as JSON values, all the way down, with text for keys."""
    if isinstance(value, (str, int, float)) or value is None:
        return value
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    fields = _fields(value)
    if isinstance(fields, dict):
        return {str(key): _plain(item) for key, item in fields.items()}
    return fields
