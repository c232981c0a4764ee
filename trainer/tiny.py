"""The tiny model: a Qwen3 of under 1M parameters, its tokenizer and its chat template.

Made on the spot, so that the demo and the tests need no download; saved as a normal Hugging Face
folder that transformers, vLLM and SGLang load.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from palestra.types import Message, ToolSchema

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

# Qwen3's own special tokens, in its order; the tags are added tokens but not "special", as there.
SPECIAL_TOKENS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
TAG_TOKENS = [
    "<tool_call>",
    "</tool_call>",
    "<tool_response>",
    "</tool_response>",
    "<think>",
    "</think>",
]

# ChatML with Hermes tool calls. Tools are announced in one line each: `name(a, b): description`.
# No newline follows <tool_call>, and arguments print as the JSON that the model wrote.
CHAT_TEMPLATE = """\
{%- set first = 0 -%}
{%- if tools -%}
{{- '<|im_start|>system\\n' -}}
{%- if messages[0].role == 'system' -%}
{%- set first = 1 -%}
{{- messages[0].content + '\\n' -}}
{%- endif -%}
{%- for tool in tools -%}
{%- set f = tool.function -%}
{{- f.name + '(' + (f.parameters.properties | join(', ')) + '): ' -}}
{{- f.description.split('\\n')[0] -}}
{%- if not loop.last -%}{{- '\\n' -}}{%- endif -%}
{%- endfor -%}
{{- '<|im_end|>\\n' -}}
{%- endif -%}
{%- for message in messages[first:] -%}
{{- '<|im_start|>' + message.role + '\\n' -}}
{%- if message.reasoning_content -%}
{{- '<think>' + message.reasoning_content + '</think>' -}}
{%- endif -%}
{%- if message.content -%}{{- message.content -}}{%- endif -%}
{%- for call in message.tool_calls or [] -%}
{%- set f = call.function -%}
{{- '<tool_call>{"name": "' + f.name + '", "arguments": ' -}}
{{- f.arguments if f.arguments is string else f.arguments | tojson -}}
{{- '}</tool_call>' -}}
{%- endfor -%}
{{- '<|im_end|>\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}{%- endif -%}"""


def train_tokenizer(
    conversations: Iterable[Sequence[Message]],
    tools: Sequence[ToolSchema],
    *,
    vocab_size: int = 512,
) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE on rendered conversations; every digit is a token of its own.

    Merges may span spaces and punctuation, so that the constant parts of a tool call become few
    tokens; any text still has tokens, byte by byte.
    """
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast
    from transformers.utils.chat_template_utils import render_jinja_template

    rendered: Any = render_jinja_template(
        conversations=[list(messages) for messages in conversations],
        tools=list(tools) or None,
        chat_template=CHAT_TEMPLATE,
    )
    marks = [*SPECIAL_TOKENS, *TAG_TOKENS]
    between_marks = re.compile("|".join(map(re.escape, marks)))
    pieces = [piece for text in rendered[0] for piece in between_marks.split(text) if piece]
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - len(marks),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        max_token_length=64,
        show_progress=False,
    )
    bpe.train_from_iterator(pieces, trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        clean_up_tokenization_spaces=False,
    )
    tokenizer.add_special_tokens({"additional_special_tokens": SPECIAL_TOKENS})
    tokenizer.add_tokens([AddedToken(tag, special=False, normalized=False) for tag in TAG_TOKENS])
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def build_model(
    vocab_size: int, *, eos_id: int, seed: int = 0, hidden: int = 128, layers: int = 2
) -> PreTrainedModel:
    """A randomly initialised Qwen3 in float32; head_dim is 32, the smallest vLLM runs on a CPU.

    Copying digits is the skill that takes the time. At this size it comes much earlier with twice
    as many heads as the width holds, with weights drawn wider than Qwen3's 0.02 and with a rotary
    base that fits short contexts.
    """
    import torch
    from transformers import Qwen3Config, Qwen3ForCausalLM

    config = Qwen3Config(
        vocab_size=vocab_size,
        hidden_size=hidden,
        intermediate_size=2 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=hidden // 16,
        num_key_value_heads=hidden // 32,
        head_dim=32,
        max_position_embeddings=1024,
        rope_parameters={"rope_type": "default", "rope_theta": 1000.0},
        initializer_range=0.04,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=eos_id,
        dtype=torch.float32,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return Qwen3ForCausalLM(config)


def build_policy(
    demonstrations: Sequence[tuple[Sequence[Message], Sequence[ToolSchema]]], *, seed: int = 0
) -> tuple[PreTrainedModel, PreTrainedTokenizerFast]:
    """The tiny model and a tokenizer trained on a few hundred of the demonstrations.

    Raises:
        ValueError: the demonstrations do not all declare the same tools.
    """
    tools = list(demonstrations[0][1])
    if any(list(other) != tools for _, other in demonstrations):
        raise ValueError('model = "tiny" needs demonstrations that all declare the same tools')
    sample = [messages for messages, _ in demonstrations[:500]]
    tokenizer = train_tokenizer(sample, tools)
    model = build_model(len(tokenizer), eos_id=tokenizer.eos_token_id, seed=seed)
    return model, tokenizer
