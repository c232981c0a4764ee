"""What clients are told while a reply is sampled adds up to what the reply says."""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Sequence
from functools import cache
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from palestra.rollout.call_formats import FORMATS, split_thinking
from palestra.rollout.chat_format import ChatFormat
from palestra.rollout.engine import Piece
from palestra.rollout.engine_errors import BadAnswer, BadLogprobs
from palestra.rollout.serving.reply import ReplyDelta
from palestra.rollout.serving.reply_text import read_reply
from palestra.rollout.serving.sampled_text import Ending, SampledText
from palestra.tools.call import split_calls
from palestra.types import Message

# Each prints a tool call in its own form, and nothing else of note.
TEMPLATE = """\
{%- for message in messages -%}
{{- '<|im_start|>' + message.role + '\\n' + message.content -}}
{%- for call in message.tool_calls or [] -%}CALL{%- endfor -%}
{{- '<|im_end|>\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\nTHINK' -}}{%- endif -%}"""
CALLS = {
    "hermes": "{{- '<tool_call>\\n' + (call.function | tojson) + '\\n</tool_call>' -}}",
    "llama3": """{{- '{"name": "' + call.function.name + '", "parameters": ' -}}
{{- (call.function.arguments | tojson) + '}' -}}""",
    "mistral": "{{- '[TOOL_CALLS] [' + (call.function | tojson) + ']' -}}",
}
FRAGMENTS = {
    "hermes": [
        '<tool_call>\n{"name": "f", "arguments": {"a": 1}}\n</tool_call>',
        '<tool_call>{"name": "f", "arguments": {"a": "</tool_call>"}}</tool_call>',
        '<tool_call>{"name": "f", "arguments": "{}"}</tool_call>',
        "<tool_call>f(1)</tool_call>",
        '<tool_call>"</tool_call>',
        "<tool_call>",
        "</tool_call>",
    ],
    "llama3": [
        '{"name": "f", "parameters": {"a": 1}}',
        '; {"name": "g", "parameters": {}}',
        '{ "name"',
        ': "f"',
        "<|python_tag|>",
        '{"type": 1}',
        '{"na',
        ";",
    ],
    "mistral": [
        '[TOOL_CALLS] [{"name": "f", "arguments": {}}, {"name": "g", "arguments": {"a": 1}}]',
        '[TOOL_CALLS]f[ARGS]{"a": 1}',
        "[TOOL_CALLS]f[CALL_ID]abcdefghi[ARGS]{}",
        "[TOOL_CALLS]f(1)",
        "[TOOL_CALLS]",
        "[TOOL_",
        "CALLS]",
    ],
}
COMMON = [
    *("<think>", "</think>", "<thi", " ", "\n", "\n\n", "The answer", "é日🎉", '"', "\\", "{", "}"),
    *("STOP", "ST", "OP.", "<|im_start|>", "\ufdd0", "42"),
]
NAMES = ["hermes", "llama3", "mistral", "thinking"]


@cache
def chat_of(name: str) -> ChatFormat:
    """A chat format over bytes, so that pieces may break a text anywhere."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    bpe = Tokenizer(models.BPE({letter: i for i, letter in enumerate(alphabet)}, []))
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    bpe.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token="<|im_end|>")
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>"]})
    form = "hermes" if name == "thinking" else name
    thinking = "<think>\\n" if name == "thinking" else ""
    template = TEMPLATE.replace("CALL", CALLS[form], 1).replace("THINK", thinking)
    tokenizer.chat_template = template
    chat = ChatFormat.from_tokenizer(tokenizer)
    assert chat.tool_format == form
    return chat


def ids_of(name: str, text: str) -> list[int]:
    return chat_of(name).encode_written(text)


def fragments_of(name: str) -> list[str]:
    return COMMON + FRAGMENTS["hermes" if name == "thinking" else name]


@st.composite
def sampled(draw: st.DrawFn, name: str) -> list[int]:
    """Tokens that say anything, broken characters included, with or without an end of turn."""
    chat = chat_of(name)
    parts = st.sampled_from(fragments_of(name)) | st.text(max_size=3)
    ids: list[int] = []
    for part in draw(st.lists(parts, max_size=8)):
        ids += chat.encode_written(part.encode(errors="replace").decode())
        ids += draw(st.lists(st.integers(0, 255), max_size=1))
    return ids + draw(st.sampled_from([[], [max(chat.stop_ids)]]))


@st.composite
def cuts(draw: st.DrawFn, length: int) -> list[int]:
    at = draw(st.lists(st.integers(0, length), max_size=10))
    return sorted({0, *at, length})


def play(
    text: SampledText, ids: Sequence[int], borders: Sequence[int]
) -> list[ReplyDelta | Ending]:
    """What is told of tokens that come in pieces with these borders."""
    told: list[ReplyDelta | Ending] = []
    for start, end in itertools.pairwise(borders):
        if text.has_ended:
            break
        part = tuple(ids[start:end])
        told.append(text.push(Piece(ids=part, logprobs=(-0.5,) * len(part))))
    told.append(text.finish("stop"))
    return told


def added_up(told: Sequence[ReplyDelta | Ending]) -> Message:
    """The message that the deltas make for a client."""
    deltas = [entry.delta if isinstance(entry, Ending) else entry for entry in told]
    message: Message = {"role": "assistant", "content": "".join(d.content for d in deltas)}
    if reasoning := "".join(delta.reasoning for delta in deltas):
        message["reasoning_content"] = reasoning
    calls: list[dict[str, Any]] = []
    for call in (call for delta in deltas for call in delta.calls):
        if call.id is not None:
            assert call.index == len(calls) and not call.arguments
            function = {"name": call.name, "arguments": ""}
            calls.append({"id": call.id, "type": "function", "function": function})
        else:
            calls[call.index]["function"]["arguments"] += call.arguments
    return {**message, "tool_calls": calls} if calls else message


def expected(chat: ChatFormat, ids: Sequence[int]) -> Message:
    """The parsed message, its malformed calls put back into the text that they were taken from."""
    parsed = chat.parse(ids)
    calls = parsed.pop("tool_calls", [])
    well_formed = [call for call in calls if "error" not in call]
    if len(well_formed) < len(calls):
        _, text = split_thinking(chat.opening + chat.text(ids))
        if chat.tool_format == "hermes":
            parts = split_calls(text)
            text = "".join(p.text for p in parts if p.call is None or "error" in p.call)
        elif chat.tool_format == "mistral":
            text, *blocks = text.split("[TOOL_CALLS]")
            for block in ("[TOOL_CALLS]" + block for block in blocks):
                if "error" in chat.call_format.read(block)["tool_calls"][0]:
                    text += block
        parsed["content"] = text.strip()
    return {**parsed, "tool_calls": well_formed} if well_formed else parsed


def property_test(examples: int) -> settings:
    return settings(
        max_examples=examples,
        deadline=None,
        derandomize=True,
        suppress_health_check=list(HealthCheck),
    )


@pytest.mark.parametrize("name", NAMES)
@property_test(300)
@given(data=st.data())
def test_the_deltas_add_up_to_the_parsed_message(name: str, data: st.DataObject) -> None:
    chat = chat_of(name)
    ids = data.draw(sampled(name))
    told = play(SampledText(chat), ids, data.draw(cuts(len(ids))))
    message = added_up(told)
    assert message == expected(chat, ids)
    assert isinstance(told[-1], Ending) and told[-1].message == message


@pytest.mark.parametrize("name", NAMES)
@property_test(100)
@given(data=st.data())
def test_without_tools_text_stays_text(name: str, data: st.DataObject) -> None:
    chat = chat_of(name)
    ids = data.draw(sampled(name))
    told = play(SampledText(chat, has_tools=False), ids, data.draw(cuts(len(ids))))
    message = added_up(told)
    assert "tool_calls" not in message
    assert message == read_reply(None, chat.opening + chat.text(ids))


@pytest.mark.parametrize("name", NAMES)
@property_test(200)
@given(data=st.data())
def test_a_reply_ends_before_the_first_stop_string(name: str, data: st.DataObject) -> None:
    chat = chat_of(name)
    ids = data.draw(sampled(name))
    stop = data.draw(st.lists(st.sampled_from(["STOP", "OP.", "TO", "\n\n", "é", "a"]), min_size=1))
    text = SampledText(chat, stop=stop, wants_logprobs=True)
    told = play(text, ids, data.draw(cuts(len(ids))))
    whole = chat.text(ids)
    ends = [(whole.find(s) + len(s), whole.find(s), s) for s in stop if s in whole]
    ending = told[-1]
    assert isinstance(ending, Ending)
    if not ends:
        assert ending.stop_string is None and added_up(told) == added_up(
            play(SampledText(chat), ids, [0, len(ids)])
        )
        return
    end, at, found = min(ends)
    assert ending.stop_string == found and text.has_ended
    assert added_up(told) == read_reply(chat.call_format, chat.opening + whole[:at])
    assert ending.finish_reason in ("stop", "tool_calls")
    # The tokens that were read end with the stop string; those that begin before it were told.
    assert chat.text(ids[: text.count])[:end] == whole[:end]
    assert chat.text(ids[: text.count - 1]).find(found) < 0
    assert told_bytes(told).decode(errors="replace").replace("\ufdd0", "").startswith(whole[:at])


def told_bytes(told: Sequence[ReplyDelta | Ending]) -> bytes:
    deltas = [entry.delta if isinstance(entry, Ending) else entry for entry in told]
    return b"".join(token.bytes for delta in deltas for token in delta.tokens)


@property_test(100)
@given(data=st.data())
def test_the_tokens_told_are_those_of_the_text(data: st.DataObject) -> None:
    chat = chat_of("hermes")
    ids = data.draw(sampled("hermes"))
    told = play(SampledText(chat, wants_logprobs=True), ids, data.draw(cuts(len(ids))))
    kept = [token_id for token_id in ids if token_id not in chat.stop_ids]
    assert told_bytes(told) == b"".join(chat.token_bytes[token_id] for token_id in kept)


@pytest.mark.parametrize("name", NAMES)
@property_test(100)
@given(data=st.data())
def test_one_call_ends_the_reply_where_only_one_is_wanted(name: str, data: st.DataObject) -> None:
    chat = chat_of(name)
    ids = data.draw(sampled(name))
    text = SampledText(chat, single_call=True)
    told = play(text, ids, data.draw(cuts(len(ids))))
    message, all_of_it = added_up(told), read_reply(chat.call_format, chat.opening + chat.text(ids))
    assert message.get("tool_calls", []) == all_of_it.get("tool_calls", [])[:1]
    assert all_of_it["content"].startswith(message["content"])
    if name == "hermes" and "tool_calls" in message:
        assert message == read_reply(chat.call_format, chat.text(ids[: text.count]))


def tell(name: str, pieces: Sequence[str], **options: Any) -> list[tuple[str, str, list[str]]]:
    """Reasoning, content and the names of calls that each piece adds, and then the end."""
    text = SampledText(chat_of(name), **options)
    told = []
    for piece in pieces:
        ids = tuple(ids_of(name, piece))
        told.append(text.push(Piece(ids=ids, logprobs=(0.0,) * len(ids))))
    told.append(text.finish("stop").delta)
    return [(t.reasoning, t.content, [call.name for call in t.calls if call.name]) for t in told]


def test_text_is_told_as_it_comes() -> None:
    assert tell("hermes", ["The", " answer", " is", " 42"]) == [
        ("", "The", []),
        ("", " answer", []),
        ("", " is", []),
        ("", " 42", []),
        ("", "", []),
    ]


def test_space_is_told_once_something_follows_it() -> None:
    assert [content for _, content, _ in tell("hermes", [" \n", "a ", "\n", "b\n", " "])] == [
        "",
        "a",
        "",
        " \nb",
        "",
        "",
    ]


def test_what_may_begin_a_call_waits_and_a_call_comes_at_its_end() -> None:
    call = '{"name": "f", "arguments": {}}'
    assert tell("hermes", ["a <", "b <tool", "_call>", call, "</tool_call>", " c"]) == [
        ("", "a", []),
        ("", " <b", []),
        ("", "", []),
        ("", "", []),
        ("", "", ["f"]),
        ("", "  c", []),
        ("", "", []),
    ]


def test_thinking_is_told_as_it_comes() -> None:
    assert tell("hermes", ["\n<th", "ink>Let", " me", " add</th", "ink>", "42"]) == [
        ("", "", []),
        ("Let", "", []),
        (" me", "", []),
        (" add", "", []),
        ("", "", []),
        ("", "42", []),
        ("", "", []),
    ]
    assert tell("thinking", ["Let", " me"])[:2] == [("Let", "", []), (" me", "", [])]


def test_text_of_llama_is_told_once_it_can_be_no_call() -> None:
    assert [t[1] for t in tell("llama3", ["{", ' "n', "o", '": 1}'])] == [
        "",
        "",
        '{ "no',
        '": 1}',
        "",
    ]
    assert [t[1] for t in tell("llama3", ["4", "2"])] == ["4", "2", ""]


def test_text_of_mistral_is_told_until_its_calls_begin() -> None:
    told = tell("mistral", ["Sure", ".[TOOL_", "CALLS]f[ARGS]", "{}"])
    assert told == [("", "Sure", []), ("", ".", []), ("", "", []), ("", "", []), ("", "", ["f"])]


def test_a_malformed_call_is_content_at_its_place() -> None:
    told = tell("hermes", ["a <tool_call>f(1)</tool_call> b"])
    assert told[0] == ("", "a <tool_call>f(1)</tool_call> b", [])
    cut = tell("hermes", ['<tool_call>{"name": "f", "ar'])
    assert cut == [("", "", []), ("", '<tool_call>{"name": "f", "ar', [])]
    told = tell("mistral", ["a[TOOL_CALLS]f(1)[TOOL_CALLS]g[ARGS]{}"])
    assert told[-1] == ("", "[TOOL_CALLS]f(1)", ["g"])
    assert tell("llama3", ['{"name": "f", "parameters": {'])[-1][1:] == (
        '{"name": "f", "parameters": {',
        [],
    )


def test_a_call_beside_a_malformed_one_keeps_the_number_that_parsing_gives_it() -> None:
    text = '<tool_call>f(1)</tool_call><tool_call>{"name": "g"}</tool_call>'
    [call] = read_reply(FORMATS["hermes"], text)["tool_calls"]
    assert call["id"] == "call_1"


def test_a_stop_string_across_pieces_is_found_and_its_beginning_is_not_told() -> None:
    text = SampledText(chat_of("hermes"), stop=["END", "EN:"])
    told = []
    for piece in ["a E", "N", "b EN", "D c"]:
        ids = tuple(ids_of("hermes", piece))
        told.append(text.push(Piece(ids=ids, logprobs=(0.0,) * len(ids))).content)
    assert told == ["a", "", " ENb", ""]
    ending = text.finish("length")
    assert (ending.finish_reason, ending.stop_string) == ("stop", "END")
    assert ending.message["content"] == "a ENb"
    assert text.count == len("a ENb END")


def test_a_half_character_waits_for_its_other_half() -> None:
    chat = chat_of("hermes")
    text = SampledText(chat, wants_logprobs=True)
    told = [text.push(Piece(ids=(i,), logprobs=(-1.0,))) for i in ids_of("hermes", "é!")]
    assert [delta.content for delta in told] == ["", "é", "!"]
    assert [[token.bytes for token in delta.tokens] for delta in told] == [
        [],
        [b"\xc3", b"\xa9"],
        [b"!"],
    ]


def test_likely_tokens_are_told_beside_each() -> None:
    chat = chat_of("hermes")
    a, b = ids_of("hermes", "ab")
    text = SampledText(chat, wants_logprobs=True)
    piece = Piece(ids=(a,), logprobs=(-0.5,), top_logprobs=(((a, -0.5), (b, -1.0)),))
    [token] = text.push(piece).tokens
    assert (token.text, token.bytes, token.logprob) == ("a", b"a", -0.5)
    assert [(top.text, top.logprob) for top in token.top] == [("a", -0.5), ("b", -1.0)]


def test_a_reply_that_was_cut_is_so_even_with_calls() -> None:
    call = ids_of("hermes", '<tool_call>{"name": "f"}</tool_call>')
    text = SampledText(chat_of("hermes"))
    text.push(Piece(ids=tuple(call), logprobs=(0.0,) * len(call)))
    ending = text.finish("length")
    assert ending.finish_reason == "length" and "tool_calls" in ending.message


@pytest.mark.parametrize(
    ("piece", "error"),
    [
        (Piece(ids=(1, 2), logprobs=(0.0,)), BadAnswer),
        (Piece(ids=(1, 2), logprobs=(0.0, 0.0), top_logprobs=((),)), BadAnswer),
        (Piece(ids=(1,), logprobs=(float("nan"),)), BadLogprobs),
    ],
)
def test_an_engine_that_is_inconsistent_is_told_so(piece: Piece, error: type[Exception]) -> None:
    with pytest.raises(error):
        SampledText(chat_of("hermes")).push(piece)


HOSTILE = [
    ("hermes", "<tool_call>"),
    ("hermes", "</tool_call>"),
    ("hermes", '<tool_call>"</tool_call>'),
    ("hermes", '<tool_call>"</tool_call><tool_call></tool_call>'),
    ("hermes", '"'),
    ("hermes", " "),
    ("thinking", "</thin"),
    ("llama3", '{"name":'),
    ("llama3", " "),
    ("mistral", "[TOOL_CALLS]"),
    ("mistral", "[TOOL"),
]


@pytest.mark.parametrize(("name", "piece"), HOSTILE)
def test_telling_takes_linear_time(name: str, piece: str) -> None:
    text = SampledText(chat_of(name), stop=["<tool_call>x"])
    ids = ids_of(name, piece)
    if name == "hermes":
        ids = ids_of(name, '<tool_call>"</tool_call>') + ids
    started = time.process_time()
    for _ in range(60_000 // len(ids)):
        text.push(Piece(ids=tuple(ids), logprobs=(0.0,) * len(ids)))
    text.finish("length")
    assert time.process_time() - started < 10  # quadratic would take minutes


def test_arguments_are_those_that_the_model_wrote() -> None:
    text = '<tool_call>{"name": "f", "arguments": {"b": 1.50, "a": "é"}}</tool_call>'
    [call] = read_reply(FORMATS["hermes"], text)["tool_calls"]
    assert json.loads(call["function"]["arguments"]) == {"b": 1.5, "a": "é"}
