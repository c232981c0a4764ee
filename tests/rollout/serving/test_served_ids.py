"""What was trained is what is served: a client's conversation has the prompts of the rollout.

A training rollout goes through `TokenPolicy`; the same conversation is then held by an OpenAI
client, who gets and sends text. The engine samples by the prompt's ids alone, so that one wrong id
changes everything after it.

What a rollout may hold and a client cannot say is a tool's answer to a malformed call: OpenAI has
no such calls, they come as text. Here the environment therefore answers those as a user, which is
what a client can do, too.
"""

from __future__ import annotations

import asyncio
import importlib.util
import json
import random
from collections.abc import AsyncGenerator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers
from tokenizers.trainers import BpeTrainer
from transformers import PreTrainedTokenizerFast

from palestra.envs import ToolEnv
from palestra.rollout import ChatFormat, Limits, TokenPolicy, run_episode
from palestra.rollout.engine import Piece
from palestra.rollout.serving.model_replier import ModelReplier
from palestra.rollout.serving.reply import ReplyEnd, ReplyRequest
from palestra.tools import tool
from palestra.trainer.tiny import build_model, train_tokenizer
from palestra.types import (
    Completion,
    Episode,
    Message,
    Sampling,
    Task,
    ToolResult,
    ToolSchema,
)
from palestra.verifiers import number

MISTRAL = """\
{{- bos_token -}}
{%- for m in messages -%}
{%- if m.role == 'user' -%}
{{- '[INST] ' + m.content + '[/INST]' -}}
{%- elif m.role == 'system' -%}
{{- '[SYSTEM] ' + m.content + '[/SYSTEM]' -}}
{%- elif m.tool_calls -%}
{{- m.content + '[TOOL_CALLS] [' -}}
{%- for call in m.tool_calls -%}
{%- if call.id | length != 9 -%}{{- raise_exception('ids have nine characters') -}}{%- endif -%}
{{- (call.function | tojson)[:-1] + ', "id": "' + call.id + '"}' -}}
{{- ', ' if not loop.last else ']' + eos_token -}}
{%- endfor -%}
{%- elif m.role == 'assistant' -%}
{{- ' ' + m.content + eos_token -}}
{%- elif m.role == 'tool' -%}
{{- '[TOOL_RESULTS] {"content": ' + m.content + ', "call_id": "' + m.tool_call_id -}}
{{- '"}[/TOOL_RESULTS]' -}}
{%- endif -%}
{%- endfor -%}"""
CHATML_TOKENS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
TAGS = ["<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>", "<think>", "</think>"]
LLAMA_TOKENS = [
    *("<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>"),
    *("<|eot_id|>", "<|eom_id|>", "<|python_tag|>"),
]
MISTRAL_TOKENS = ["<s>", "</s>", "[INST]", "[/INST]", "[TOOL_CALLS]", "[TOOL_RESULTS]"]
# name: template, control tokens, tags, beginning of text, end of text, form of calls
KINDS: dict[str, tuple[str, list[str], list[str], str | None, str, str | None]] = {
    "qwen3": ("trl:qwen3", CHATML_TOKENS, TAGS, None, "<|im_end|>", None),
    "qwen2_5": ("trl:qwen2_5", CHATML_TOKENS, TAGS[:2], None, "<|im_end|>", None),
    "qwen3_5": ("trl:qwen3_5_think", CHATML_TOKENS, TAGS, None, "<|im_end|>", "hermes"),
    "llama3_1": ("trl:llama3_1", LLAMA_TOKENS, [], "<|begin_of_text|>", "<|eot_id|>", None),
    "gemma": (
        "trl:gemma",
        ["<bos>", "<start_of_turn>", "<end_of_turn>"],
        [],
        "<bos>",
        "<bos>",
        None,
    ),
    "mistral": (MISTRAL, MISTRAL_TOKENS, [], "<s>", "</s>", None),
}
FAMILIES = ["tiny", "qwen3_keep", *KINDS]
CONVERSATIONS = 25  # of each: 200 in all
CORPUS = [
    "system\nYou are helpful.\n\nuser\nassistant\n\n\nThe answer is 42.\n\n",
    '{"name": "add", "arguments": {"a": 17, "b": 25}}\n<think>\nhello\n</think>\n\n>\n>\n',
    "question and answer, tool\n\n{}\n[1, 2]\n<>\n|im_end| im_start INST eot_id",
] * 4
WORDS = [
    "The answer",
    " is",
    " 42",
    ".\n",
    "\n\n",
    " é",
    "日本",
    "🎉",
    "<think>",
    "</think>",
    "{",
    '"',
]


@tool
def add(a: int, b: int) -> int:
    """Add two integers."""
    return a + b


@tool
def echo(text: str) -> str:
    """Say a text."""
    return text


class ChattyEnv(ToolEnv):
    """The user goes on after every reply that calls nothing, or nothing that can be read."""

    async def observe(
        self, reply: Message, results: tuple[ToolResult, ...]
    ) -> tuple[Message, ...] | None:
        calls = reply.get("tool_calls", ())
        told = [
            result.message()
            for call, result in zip(calls, results, strict=True)
            if "error" not in call
        ]
        if len(told) < len(calls):
            told.append({"role": "user", "content": "That was no call."})
        return (*told,) if told else ({"role": "user", "content": "Go on.\n"},)


@cache
def chat_of(family: str) -> ChatFormat:
    if family == "tiny":
        return ChatFormat.from_tokenizer(
            train_tokenizer([[{"role": "user", "content": text}] for text in CORPUS], [])
        )
    template, control, tags, bos, eos, form = KINDS[family.removesuffix("_keep")]
    words = r"\p{N}|[^\r\n\p{L}\p{N}]?\p{L}+| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+"
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(words), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    bpe.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = BpeTrainer(vocab_size=500, initial_alphabet=alphabet, show_progress=False)
    bpe.train_from_iterator(CORPUS, trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe, bos_token=bos, eos_token=eos, clean_up_tokenization_spaces=False
    )
    tokenizer.add_special_tokens({"additional_special_tokens": control})
    tokenizer.add_tokens([AddedToken(tag, special=False) for tag in tags])
    tokenizer.chat_template = trl_template(template[4:]) if template[:4] == "trl:" else template
    history = "keep" if family.endswith("_keep") else "template"
    return ChatFormat.from_tokenizer(tokenizer, history=history, tool_format=form)


def trl_template(name: str) -> str:
    spec = importlib.util.find_spec("trl")
    assert spec is not None and spec.submodule_search_locations
    folder = Path(spec.submodule_search_locations[0]) / "chat_templates"
    return (folder / f"{name}.jinja").read_text()


class SeededEngine:
    """Samples by the prompt's ids: thinking, text, calls, malformed ones, in any tokenization."""

    context_length = 20_000
    version = 0

    def __init__(self, chat: ChatFormat) -> None:
        self._chat = chat
        self.prompts: list[tuple[int, ...]] = []

    async def generate(self, prompt_ids: Sequence[int], sampling: Sampling) -> Completion:
        ids, reason = self._sample(prompt_ids, sampling)
        await asyncio.sleep(0)
        return Completion(ids=ids, logprobs=(-1.0,) * len(ids), stop_reason=reason)

    async def stream(
        self, prompt_ids: Sequence[int], sampling: Sampling, *, top_logprobs: int = 0
    ) -> AsyncGenerator[Piece, None]:
        ids, reason = self._sample(prompt_ids, sampling)
        while ids:
            piece, ids = ids[:3], ids[3:]
            await asyncio.sleep(0)
            yield Piece(ids=piece, logprobs=(-1.0,) * len(piece))
        yield Piece(ids=(), logprobs=(), stop_reason=reason)

    async def score(self, token_ids: Sequence[int]) -> tuple[float, ...]:
        raise NotImplementedError

    async def update_weights(self, version: int, *args: Any, **kwargs: Any) -> None:
        raise NotImplementedError

    async def aclose(self) -> None:
        pass

    def _sample(self, prompt_ids: Sequence[int], sampling: Sampling) -> tuple[tuple[int, ...], str]:
        self.prompts.append(tuple(prompt_ids))
        rng = random.Random(repr(tuple(prompt_ids)))
        ids: list[int] = []
        for part in self._parts(rng):
            while part:  # BPE would have merged these otherwise
                length = rng.randint(1, 12)
                ids += self._chat.encode_written(part[:length]) if length < 12 else ()
                if length == 12:
                    length = len(part)
                    ids += self._chat.encode_written(part)
                part = part[length:]
            if rng.random() < 0.1:
                stray = rng.randrange(300)  # half a character, often
                ids += [] if stray in self._chat.stop_ids else [stray]
        if not ids or rng.random() < 0.95:
            ids.append(max(self._chat.stop_ids))
        ids = ids[: sampling.max_tokens]
        return tuple(ids), "stop" if ids[-1] in self._chat.stop_ids else "length"

    def _parts(self, rng: random.Random) -> list[str]:
        """What a reply says."""
        opens = "" if self._chat.opening else "<think>"
        parts: list[str] = []
        if opens == "" or rng.random() < 0.4:
            parts += [
                opens,
                "\nLet me",
                rng.choice(WORDS[:8]),
                "</think>",
                rng.choice(["", "\n\n"]),
            ]
        if rng.random() < 0.5:
            parts += rng.choices(WORDS, k=rng.randint(1, 5))
        for _ in range(rng.choice([0, 1, 1, 1, 2, 3])):
            parts.append(self._call(rng))
        return parts

    def _call(self, rng: random.Random) -> str:
        form = self._chat.call_format
        arguments = rng.choice(
            [
                '{"a": 1, "b":2}',
                '{ "b": 25,  "a": 17 }',
                '{"text": "</tool_call> é\\n"}',
                "{}",
                "[1]",
            ]
        )
        name = rng.choice(["add", "echo", "sub"])
        body = f'{{"name": "{name}", "{form.arguments_key}": {arguments}}}'
        if rng.random() < 0.25:  # malformed
            body = rng.choice([body[:-2], f"{name}(1)", body.replace(":", "", 1)])
        call = form.prefix + body + form.suffix
        return f"; {call}" if form.name == "llama3" and rng.random() < 0.3 else call


def play(
    policy: TokenPolicy, tasks: Sequence[Task], *, max_turns: int = 6, max_tokens: int = 400
) -> list[Episode]:
    async def play_all() -> list[Episode]:
        return await asyncio.gather(
            *(
                run_episode(
                    ChattyEnv(
                        tasks=[task],
                        tools=[add, echo],
                        verifier=number,
                        system_prompt="Be brief." if index % 2 else None,
                        max_turns=max_turns,
                    ),
                    policy,
                    task,
                    limits=Limits(max_turns=max_turns),
                    sampling=Sampling(max_tokens=max_tokens),
                    seed=index,
                )
                for index, task in enumerate(tasks)
            )
        )

    return asyncio.run(play_all())


def tasks_of(count: int) -> list[Task]:
    return [
        Task(id=f"{n}", messages=({"role": "user", "content": f"What is {n} + 25?"},), answer="42")
        for n in range(count)
    ]


async def ask(
    replier: ModelReplier, messages: Sequence[Message], episode: Episode, *, turn: int, stream: bool
) -> ReplyEnd:
    sampling = episode.turns[turn].sampling
    assert sampling is not None
    tools: list[ToolSchema] = json.loads(json.dumps(episode.tools))
    request = ReplyRequest(messages=tuple(messages), tools=tuple(tools), sampling=sampling)
    ends = [delta.end async for delta in replier.reply(request, stream=stream) if delta.end]
    return ends[0]


async def hold_again(replier: ModelReplier, episode: Episode, rng: random.Random) -> None:
    """The conversation of an episode as a client holds it, who knows nothing but text."""
    keeps_thinking = rng.random() < 0.3
    messages = list(episode.prompt)
    for number_, turn in enumerate(episode.turns):
        end = await ask(replier, messages, episode, turn=number_, stream=rng.random() < 0.5)
        assert end.turn.prompt_ids == turn.prompt_ids
        assert end.turn.completion_ids == turn.completion_ids
        said = json.loads(json.dumps(end.message))
        if not keeps_thinking:
            said.pop("reasoning_content", None)
        said["content"] = said["content"] or None
        well_formed = [c for c in turn.message.get("tool_calls", ()) if "error" not in c]
        ids = {
            ours["id"]: theirs["id"]
            for ours, theirs in zip(well_formed, said.get("tool_calls", ()), strict=True)
        }
        answers = [
            {"role": "tool", "tool_call_id": ids[m["tool_call_id"]], "content": m["content"]}
            for m in turn.observation
            if m["role"] == "tool"
        ]
        rng.shuffle(answers)  # as they come in
        others = [dict(m) for m in turn.observation if m["role"] != "tool"]
        messages = json.loads(json.dumps([*messages, said, *answers, *others]))


@pytest.mark.parametrize("family", FAMILIES)
def test_served_prompts_are_those_of_the_training_rollouts(family: str) -> None:
    chat = chat_of(family)
    engine = SeededEngine(chat)
    episodes = play(TokenPolicy(engine, chat), tasks_of(CONVERSATIONS))
    trained = sorted(engine.prompts)
    assert sum(len(episode.turns) for episode in episodes) == len(trained) > 3 * CONVERSATIONS
    engine.prompts.clear()
    replier = ModelReplier(engine, chat, models=("it",))

    async def serve() -> None:
        rng = random.Random(family)
        await asyncio.gather(*(hold_again(replier, episode, rng) for episode in episodes))

    asyncio.run(serve())
    assert sorted(engine.prompts) == trained


def test_the_conversations_hold_what_is_hard_to_keep() -> None:
    """Else the test above would prove little."""
    calls: list[Message] = []
    turns = rewritten = thinking = 0
    for family in FAMILIES:
        chat = chat_of(family)
        for episode in play(TokenPolicy(SeededEngine(chat), chat), tasks_of(8)):
            for turn in episode.turns:
                turns += 1
                rewritten += turn.parent is None and turn is not episode.turns[0]
                thinking += "reasoning_content" in turn.message
                text = chat.text(turn.completion_ids)
                calls.append(
                    {
                        "errors": sum("error" in c for c in turn.message.get("tool_calls", ())),
                        "calls": len(turn.message.get("tool_calls", ())),
                        "odd": chat.encode_written(text) != list(turn.completion_ids)[:-1],
                        "broken": "\ufffd" in text,
                    }
                )
    assert rewritten > 5 and thinking > 20
    assert sum(c["odd"] for c in calls) > turns / 2
    assert sum(c["errors"] > 0 for c in calls) > 20
    assert sum(c["calls"] > 1 for c in calls) > 20
    assert sum(0 < c["errors"] < c["calls"] for c in calls) > 5
    assert sum(c["broken"] for c in calls) > 5


def test_so_are_those_of_a_model_with_random_weights() -> None:
    from palestra.rollout.engine_hf import HFEngine

    tokenizer = train_tokenizer([task.messages for task in tasks_of(6)], [])
    chat = ChatFormat.from_tokenizer(tokenizer)
    model = build_model(len(tokenizer), eos_id=max(chat.stop_ids))
    engine = HFEngine(model, stop_ids=chat.stop_ids, context_length=1024)
    episodes = play(TokenPolicy(engine, chat), tasks_of(6), max_turns=3, max_tokens=24)
    replier = ModelReplier(engine, chat, models=("it",))

    async def serve() -> None:
        rng = random.Random(0)
        for episode in episodes:
            await hold_again(replier, episode, rng)
        await engine.aclose()

    asyncio.run(serve())
