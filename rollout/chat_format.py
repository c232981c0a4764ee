"""Conversations to token ids and back: the only place that renders and parses.

The next prompt is the previous ids, untouched, plus the ids of what came after them. Text that a
model sampled is never tokenized again: BPE is not a bijection, and a template may print a reply
otherwise than it was sampled.

`ChatFormat.extend` renders the conversation twice, before the reply and after the new messages.
What stands behind the reply's end-of-turn token is what to append (Qwen's newline included).
Where the template rewrites what came before, as Qwen3 does when it drops earlier thinking, it
returns None: the caller renders afresh and the episode branches.
"""

from __future__ import annotations

import difflib
import itertools
import logging
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from palestra.rollout.call_formats import FORMATS, CallFormat
from palestra.rollout.chat_format_file import (
    ChatFormatSettings,
    load_tokenizer,
    read_settings,
    template_of,
    write_settings,
)
from palestra.rollout.chat_template import ChatTemplate
from palestra.rollout.conversation_window import probe_conversation, shorten
from palestra.rollout.inert_text import MARK, Marker, control_tokens, private_tokenizer
from palestra.rollout.template_messages import Preparer, meaning
from palestra.rollout.template_traits import USER, find_call_form, find_end_of_turn, probe
from palestra.rollout.token_bytes import TokenBytes
from palestra.types import Message, ToolSchema

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_log = logging.getLogger(__name__)

HISTORIES = ("template", "keep")

# Tokens that end a reply in published models, besides the template's own end of turn.
_STOPS = ("<|im_end|>", "<|endoftext|>", "<|eot_id|>", "<|eom_id|>", "<|end_of_text|>")
_MAX_REMEMBERED_CHARACTERS = 16_000_000
_ENTRY_CHARACTERS = 1_000  # what else a remembered prompt takes up, its messages included
_MAX_PROMPTS = 32


class ChatFormat:
    """A chat template, its tokenizer and the form in which the model writes tool calls.

    Made by `from_tokenizer` or `load`. `stop_ids` are the tokens that end a reply; the one that
    was sampled belongs to the completion. `token_bytes` has the UTF-8 of each token; `opening` is
    how every reply begins, where the prompt has written that already ("<think>", else "").
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, settings: ChatFormatSettings) -> None:
        if settings.history not in HISTORIES:
            raise ValueError(f'history must be "template" or "keep", got {settings.history!r}')
        self._template = ChatTemplate(
            settings.template,
            variables={**tokenizer.special_tokens_map, **settings.options},
            today=settings.today,
        )
        control = control_tokens(tokenizer)
        self._end_of_turn = find_end_of_turn(self._template, control)
        self._preparer = _preparer(
            self._template, self._end_of_turn, settings.tool_format, Marker(tokenizer)
        )
        self._tokenizer = private_tokenizer(tokenizer)
        self.token_bytes = TokenBytes(self._tokenizer)
        self._end_id = self._encode(self._end_of_turn)[0]
        known = [self._tokenizer.token_to_id(token) for token in _STOPS if token in control]
        stops = (self._end_id, tokenizer.eos_token_id, *known, *settings.stop_ids)
        self.stop_ids: frozenset[int] = frozenset(stop for stop in stops if stop is not None)
        self.settings = replace(
            settings, tool_format=self.tool_format, stop_ids=tuple(sorted(self.stop_ids))
        )
        header = self._template.render([USER], prompt=True)
        self.opening = "<think>" if header.rstrip().endswith("<think>") else ""
        empty_thinking = re.search(r"<think>\s*</think>\s*\Z", header)
        self._empty_thinking = empty_thinking[0] if empty_thinking else ""
        # The samples of a task begin with the same prompt.
        self._encode_prompt = lru_cache(_MAX_PROMPTS)(lambda text: tuple(self._encode(text)))
        self._takes_windows: bool | None = None  # not tried yet
        self._remembered: dict[tuple[int, ...], tuple[str, object]] = {}
        self._remembered_characters = 0

    @property
    def tool_format(self) -> str:
        """How the model writes tool calls: "hermes", "llama3" or "mistral"."""
        return self.call_format.name

    @property
    def call_format(self) -> CallFormat:
        """The form in which the model writes tool calls."""
        return self._preparer.form

    @staticmethod
    def from_tokenizer(
        tokenizer: PreTrainedTokenizerBase,
        *,
        tool_format: str | None = None,
        history: str = "template",
        options: Mapping[str, Any] | None = None,
        stop_ids: Iterable[int] = (),
    ) -> ChatFormat:
        """The chat format of a fast tokenizer that has a chat template.

        `tool_format` is found out from the template; "hermes" works with any: if the template has
        no tools or another form, tools are announced in the system message and calls are written
        as text. `history` says what happens where the template rewrites earlier turns: "template"
        follows it (`extend` returns None), "keep" appends and leaves the earlier ids alone.
        `options` are variables of the template, such as `enable_thinking`.

        Raises ValueError if there is no chat template, or none that can be used.
        """
        settings = ChatFormatSettings(
            template=template_of(tokenizer),
            tool_format=tool_format,
            history=history,
            options=options or {},
            stop_ids=tuple(stop_ids),
        )
        return ChatFormat(tokenizer, settings)

    @staticmethod
    def load(model_dir: str | Path, *, history: str | None = None) -> ChatFormat:
        """The chat format of a model folder, as `chat_format.json` has it where there is one.

        `history` overrides the one there ("template" where there is none).
        Raises ValueError if the folder, its tokenizer or its chat template is missing, or if the
        template is not the one that the model was trained with.
        """
        folder = Path(model_dir)
        tokenizer = load_tokenizer(folder)
        settings = read_settings(folder, tokenizer)
        return ChatFormat(tokenizer, replace(settings, history=history or settings.history))

    def save(self, model_dir: str | Path) -> None:
        """Write `chat_format.json` into a model folder."""
        write_settings(self.settings, Path(model_dir))

    def render(self, messages: Sequence[Message], tools: Sequence[ToolSchema] = ()) -> list[int]:
        """The ids of the whole conversation, up to where the model's reply begins.

        Raises ValueError for a conversation that cannot be rendered: an empty one, one with
        content that is not text.
        """
        return list(self._encode_prompt(self._prompt(messages, tools)))

    def extend(
        self,
        previous_ids: Sequence[int],
        messages_before: Sequence[Message],
        reply: Message,
        new_messages: Sequence[Message],
        tools: Sequence[ToolSchema] = (),
    ) -> list[int] | None:
        """The next prompt: `previous_ids` (prompt + completion), then the new messages' ids.

        `messages_before` is what that prompt rendered and `reply` what the completion says. A
        completion that was cut short gets its end-of-turn token. None where the template would
        print the earlier turns, or what the reply says, otherwise than they were; with history
        "keep" only where the reply cannot be found in the rendering at all.
        """
        last_id = previous_ids[-1] if previous_ids else None
        added = self.continuation(last_id, messages_before, reply, new_messages, tools)
        return None if added is None else [*previous_ids, *added]

    def continuation(
        self,
        last_id: int | None,
        messages_before: Sequence[Message],
        reply: Message,
        new_messages: Sequence[Message],
        tools: Sequence[ToolSchema] = (),
    ) -> list[int] | None:
        """What `extend` appends to a completion that ends with `last_id`."""
        added = self._added(messages_before, reply, new_messages, tools)
        if added is None:
            return None
        # Tokenized behind the end-of-turn token, as in the full rendering.
        ids = self._encode(added)
        if last_id in self.stop_ids:
            return ids[1:]
        return [self._end_id, *ids[1:]]

    def encode_reply(
        self, messages: Sequence[Message], reply: Message, tools: Sequence[ToolSchema] = ()
    ) -> list[int]:
        """The ids that say `reply` after `render(messages, tools)`, for demonstrations.

        They are what the template prints for it, the end-of-turn token included. Raises ValueError
        if the template prints the reply elsewhere than behind the header it prompts with.
        """
        prompt = self._prompt(messages, tools)
        text = self._render([*messages, reply], tools, prompt=False)
        if not text.startswith(prompt):  # the template prints the prompt otherwise behind a reply
            prompt = self._prompt([USER], ())
            text = self._render([USER, reply], (), prompt=False)
        end = _find_nth(text, self._end_of_turn, prompt.count(self._end_of_turn) + 1)
        if end is None or not text.startswith(prompt):
            raise ValueError("the chat template does not print this reply behind its own header")
        end += len(self._end_of_turn)
        prompt_ids, ids = self._encode(prompt), self._encode(text[:end])
        if ids[: len(prompt_ids)] == prompt_ids:
            return ids[len(prompt_ids) :]
        # The reply's first characters would merge with the header: tokenize it by itself.
        return self._encode(self._end_of_turn + text[len(prompt) : end])[1:]

    def parse(self, completion_ids: Sequence[int]) -> Message:
        """The assistant's message in sampled ids, in the form of `palestra.tools.parse_reply`.

        Never raises: a malformed call becomes an entry of `tool_calls` with "error".
        """
        return self.call_format.read(self.opening + self.text(completion_ids))

    def text(self, completion_ids: Sequence[int]) -> str:
        """What sampled ids say, without the tokens that end a reply; never raises."""
        end = len(completion_ids)
        while end and completion_ids[end - 1] in self.stop_ids:
            end -= 1
        data = b"".join(map(self.token_bytes.__getitem__, completion_ids[:end]))
        return data.decode(errors="replace").replace(MARK, "")

    def encode_written(self, text: str) -> list[int]:
        """The ids of text as the model would write it: control tokens that it spells are such."""
        return self._encode(text)

    def _added(
        self,
        before: Sequence[Message],
        reply: Message,
        new: Sequence[Message],
        tools: Sequence[ToolSchema],
    ) -> str | None:
        """What stands behind a reply, its end-of-turn token included; None if it does not extend.

        Of a long conversation only a part is rendered, once the template has been found to print
        the same for it, and again and again as the conversation grows.
        """
        window = shorten(before) if self._takes_windows is not False else None
        if window is None:
            return self._added_to(before, reply, new, tools)
        if self._takes_windows is None:
            self._takes_windows = self._try_windows()
            return self._added(before, reply, new, tools)
        added = self._added_to(window.messages, reply, new, tools)
        if window.is_due_for_check:
            expected = self._added_to(before, reply, new, tools)
            if added != expected:
                self._takes_windows = False
                _log.warning(
                    "the chat template prints something else in a conversation of %d replies than "
                    "in a shortened one: from now on conversations are rendered whole",
                    window.replies,
                )
            return expected
        return added

    def _added_to(
        self,
        messages_before: Sequence[Message],
        reply: Message,
        new_messages: Sequence[Message],
        tools: Sequence[ToolSchema],
    ) -> str | None:
        """The delta of two renderings."""
        before = self._remembered_prompt(messages_before, tools)
        after = self._prompt([*messages_before, reply, *new_messages], tools)
        # Messages cannot spell an end-of-turn token, so counting finds the reply's own.
        end = _find_nth(after, self._end_of_turn, before.count(self._end_of_turn) + 1)
        if end is None:
            return None
        if self.settings.history == "template":
            # Thinking that is switched off by an empty block says nothing: it may stay or go.
            before = before.removesuffix(self._empty_thinking)
            if not after.startswith(before):
                return None
            printed = self.opening + after[len(before) : end].replace(MARK, "")
            if meaning(self.call_format.read(printed)) != meaning(reply):
                return None
        return after[end:]

    def _try_windows(self) -> bool:
        """Whether the template prints the same behind a reply when its middle is left out."""
        messages, tools = probe_conversation()
        replies = [i for i, message in enumerate(messages) if message["role"] == "assistant"]
        for start, end in itertools.pairwise((*replies, len(messages))):
            before, (reply, *new) = messages[:start], messages[start:end]
            window = shorten(before)
            try:
                if window is not None and self._added_to(
                    window.messages, reply, new, tools
                ) != self._added_to(before, reply, new, tools):
                    return False
            except ValueError:
                return False
        return True

    def _render(
        self, messages: Sequence[Message], tools: Sequence[ToolSchema], *, prompt: bool
    ) -> str:
        prepared, announced = self._preparer.prepare(messages, tools)
        return self._template.render(prepared, announced, prompt=prompt)

    def _prompt(self, messages: Sequence[Message], tools: Sequence[ToolSchema]) -> str:
        text = self._render(messages, tools, prompt=True)
        if self._remembered_characters > _MAX_REMEMBERED_CHARACTERS:
            self._remembered, self._remembered_characters = {}, 0
        # The entry keeps its messages alive, so that their ids stay theirs.
        self._remembered[_key(messages, tools)] = (text, (tuple(messages), tuple(tools)))
        self._remembered_characters += len(text) + _ENTRY_CHARACTERS
        return text

    def _remembered_prompt(self, messages: Sequence[Message], tools: Sequence[ToolSchema]) -> str:
        """The text of an earlier prompt, rendered anew only if it was forgotten."""
        entry = self._remembered.get(_key(messages, tools))
        return self._render(messages, tools, prompt=True) if entry is None else entry[0]

    def _encode(self, text: str) -> list[int]:
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=False).ids
        return ids


def _preparer(
    template: ChatTemplate, end_of_turn: str, tool_format: str | None, marker: Marker
) -> Preparer:
    """How to prepare messages for the template, and in which form of tool calls."""
    if tool_format is not None and tool_format not in FORMATS:
        nearest = difflib.get_close_matches(tool_format, FORMATS, n=1, cutoff=0.0)[0]
        raise ValueError(f"unknown tool_format {tool_format!r}; did you mean {nearest!r}?")
    traits, hermes = probe(template), FORMATS["hermes"]
    printed = find_call_form(template, end_of_turn) if traits.calls else hermes
    if printed is not None and tool_format in (None, printed.name):
        return Preparer(traits=traits, form=printed, marker=marker)
    if tool_format == "hermes":  # leaving aside what the template itself would do
        traits = replace(traits, tools=False, calls=False, several_calls=False)
        return Preparer(traits=traits, form=hermes, marker=marker)
    raise ValueError(
        "the chat template writes tool calls in a form that cannot be read back; "
        'pass tool_format="hermes" to announce tools and write calls in that form'
        if printed is None
        else f"the chat template writes {printed.name} calls, not {tool_format} ones; "
        'leave tool_format out, or pass "hermes"'
    )


def _key(messages: Sequence[Message], tools: Sequence[ToolSchema]) -> tuple[int, ...]:
    return (*map(id, messages), 0, *map(id, tools))


def _find_nth(text: str, part: str, n: int) -> int | None:
    position = -1
    for _ in range(n):
        position = text.find(part, position + 1)
        if position < 0:
            return None
    return position
