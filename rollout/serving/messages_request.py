"""Requests of Anthropic's Messages API, and what they ask of a `Replier`."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag

from palestra.rollout.serving.api_error import ApiError
from palestra.rollout.serving.reply import ReplyRequest
from palestra.rollout.serving.request_fields import (
    NO_TOKEN_LIMIT,
    Body,
    Ignored,
    Unsupported,
    kind,
    text_or_list,
)
from palestra.rollout.serving.tool_schemas import check_functions, check_json_schema
from palestra.types import Message, Sampling, Structure, ToolSchema

_MAX_STOPS = 16
_MAX_STOP_CHARACTERS = 1000


class TextBlock(Body):
    """Text."""

    type: Literal["text"]
    text: str
    cache_control: Ignored = None
    citations: Unsupported = None


Text = Annotated[
    Annotated[str, Tag("<text>")]
    | Annotated[
        list[Annotated[Annotated[TextBlock, Tag("<text>")], Discriminator(kind())]], Tag("<list>")
    ],
    Discriminator(text_or_list),
]


class ToolUseBlock(Body):
    """A call that the model made in an earlier reply."""

    type: Literal["tool_use"]
    id: str = Field(min_length=1)
    name: str
    input: dict[str, Any]
    cache_control: Ignored = None
    caller: Ignored = None


class ToolResultBlock(Body):
    """What a call returned; an error is told by its text."""

    type: Literal["tool_result"]
    tool_use_id: str
    content: Text | None = None
    is_error: bool | None = None
    cache_control: Ignored = None


class ThinkingBlock(Body):
    """What the model thought in an earlier reply."""

    type: Literal["thinking"]
    thinking: str
    signature: Ignored = None


UserBlock = Annotated[
    Annotated[TextBlock, Tag("<text>")] | Annotated[ToolResultBlock, Tag("<tool_result>")],
    Discriminator(kind()),
]
AssistantBlock = Annotated[
    Annotated[TextBlock, Tag("<text>")]
    | Annotated[ToolUseBlock, Tag("<tool_use>")]
    | Annotated[ThinkingBlock, Tag("<thinking>")],
    Discriminator(kind()),
]


class UserTurn(Body):
    """What the user says, and what tools returned."""

    role: Literal["user"]
    content: Annotated[
        Annotated[str, Tag("<text>")] | Annotated[list[UserBlock], Tag("<list>")],
        Discriminator(text_or_list),
    ]


class AssistantTurn(Body):
    """An earlier reply."""

    role: Literal["assistant"]
    content: Annotated[
        Annotated[str, Tag("<text>")] | Annotated[list[AssistantBlock], Tag("<list>")],
        Discriminator(text_or_list),
    ]


class CustomTool(Body):
    """A tool that the model may call; `strict` has no effect."""

    type: Literal["custom"] | None = None
    name: str
    description: str | None = None
    input_schema: dict[str, Any]
    strict: bool | None = None
    cache_control: Ignored = None


class AutoChoice(Body):
    """The model calls tools or not."""

    type: Literal["auto"]
    disable_parallel_tool_use: bool | None = None


class AnyChoice(Body):
    """The model must call a tool."""

    type: Literal["any"]
    disable_parallel_tool_use: bool | None = None


class OneToolChoice(Body):
    """The model must call this tool."""

    type: Literal["tool"]
    name: str
    disable_parallel_tool_use: bool | None = None


class NoChoice(Body):
    """The model must call no tool."""

    type: Literal["none"]


class ThinkingOff(Body):
    """Whether a model thinks is its own affair."""

    type: Literal["disabled"]


class OutputSchema(Body):
    """JSON that fits a schema."""

    type: Literal["json_schema"]
    json_schema: dict[str, Any] = Field(alias="schema")


class OutputConfig(Body):
    """The form of the text."""

    format: OutputSchema | None = None
    effort: Unsupported = None


class CountTokensRequest(Body):
    """The body of POST /v1/messages/count_tokens: what makes up a prompt."""

    model: str
    messages: list[
        Annotated[
            Annotated[UserTurn, Tag("<user>")] | Annotated[AssistantTurn, Tag("<assistant>")],
            Discriminator(kind(field="role")),
        ]
    ] = Field(min_length=1)
    system: Text | None = None
    tools: list[CustomTool] | None = None
    tool_choice: (
        Annotated[
            Annotated[AutoChoice, Tag("<auto>")]
            | Annotated[AnyChoice, Tag("<any>")]
            | Annotated[OneToolChoice, Tag("<tool>")]
            | Annotated[NoChoice, Tag("<none>")],
            Discriminator(kind()),
        ]
        | None
    ) = None
    output_config: OutputConfig | None = None
    thinking: ThinkingOff | None = None
    cache_control: Ignored = None
    context_management: Unsupported = None
    mcp_servers: Unsupported = None
    speed: Literal["standard"] | None = None


class MessagesRequest(CountTokensRequest):
    """The body of POST /v1/messages."""

    max_tokens: int = Field(ge=1)
    temperature: float | None = Field(default=None, ge=0.0, le=2.0)
    top_p: float | None = Field(default=None, gt=0.0, le=1.0)
    top_k: int | None = Field(default=None, ge=0, le=NO_TOKEN_LIMIT)
    stop_sequences: (
        Annotated[
            list[Annotated[str, Field(min_length=1, max_length=_MAX_STOP_CHARACTERS)]],
            Field(max_length=_MAX_STOPS),
        ]
        | None
    ) = None
    stream: bool | None = None
    metadata: Ignored = None
    service_tier: Literal["auto", "standard_only"] | None = None
    container: Unsupported = None
    diagnostics: Unsupported = None
    inference_geo: Unsupported = None
    thread: Unsupported = None


def reply_request(body: MessagesRequest) -> ReplyRequest:
    """What a request asks of the model. Raises ApiError (400)."""
    wanted = prompt_request(body)
    return replace(
        wanted,
        sampling=Sampling(
            temperature=1.0 if body.temperature is None else body.temperature,
            top_p=1.0 if body.top_p is None else body.top_p,
            top_k=body.top_k or 0,
            max_tokens=min(body.max_tokens, NO_TOKEN_LIMIT),
            structure=wanted.sampling.structure,
        ),
        stop=tuple(body.stop_sequences or ()),
    )


def prompt_request(body: CountTokensRequest) -> ReplyRequest:
    """A request with this prompt. Raises ApiError (400)."""
    tools = check_functions(
        [
            {
                "name": tool.name,
                "description": tool.description,
                "parameters": tool.input_schema,
            }
            for tool in body.tools or ()
        ],
        parameters="input_schema",
    )
    tool_choice, tool_name = _tool_choice(body, tools)
    return ReplyRequest(
        messages=tuple(_conversation(body)),
        tools=tools,
        tool_choice=tool_choice,
        tool_name=tool_name,
        parallel_tool_calls=not getattr(body.tool_choice, "disable_parallel_tool_use", False),
        sampling=Sampling(structure=_structure(body.output_config)),
    )


def _tool_choice(
    body: CountTokensRequest, tools: tuple[ToolSchema, ...]
) -> tuple[Literal["auto", "none", "required", "function"], str | None]:
    choice = body.tool_choice
    if isinstance(choice, OneToolChoice):
        if all(tool["function"]["name"] != choice.name for tool in tools):
            raise _refusal("tool_choice.name", f'no tool is called "{choice.name:.64}"')
        return "function", choice.name
    if isinstance(choice, AnyChoice):
        if not tools:
            raise _refusal("tool_choice", "there are no tools to choose from")
        return "required", None
    return "none" if isinstance(choice, NoChoice) else "auto", None


def _structure(config: OutputConfig | None) -> Structure | None:
    if config is None or config.format is None:
        return None
    schema = config.format.json_schema
    check_json_schema(schema, at="output_config.format.schema")
    # An empty schema allows any JSON; a structure needs something to go by.
    return Structure(json_schema=schema or {"type": "object"})


def _conversation(body: CountTokensRequest) -> Iterator[Message]:
    if body.system:
        yield {"role": "system", "content": _text(body.system)}
    called: set[str] = set()
    for index, message in enumerate(body.messages):
        if isinstance(message, UserTurn):
            yield from _user(message, f"messages[{index}]", called)
        else:
            yield _assistant(message)
            if not isinstance(message.content, str):
                called.update(
                    block.id for block in message.content if isinstance(block, ToolUseBlock)
                )
    if body.messages[-1].role == "assistant":
        raise _refusal(
            "messages", "the last one must be the user's: this server does not go on with a reply"
        )


def _user(message: UserTurn, at: str, called: set[str]) -> Iterator[Message]:
    """What tools returned, then what the user said."""
    if isinstance(message.content, str):
        yield {"role": "user", "content": message.content}
        return
    said: list[TextBlock] = []
    for index, block in enumerate(message.content):
        place = f"{at}.content[{index}]"
        if isinstance(block, TextBlock):
            said.append(block)
            continue
        if said:
            raise _refusal(place, "tool_result blocks come before text")
        if block.tool_use_id not in called:
            problem = f'no tool_use before it has the id "{block.tool_use_id:.100}"'
            raise _refusal(f"{place}.tool_use_id", problem)
        yield {
            "role": "tool",
            "tool_call_id": block.tool_use_id,
            "content": _text(block.content or ""),
        }
    if said or not message.content:
        yield {"role": "user", "content": _text(said)}


def _assistant(message: AssistantTurn) -> Message:
    if isinstance(message.content, str):
        return {"role": "assistant", "content": message.content}
    texts: list[str] = []
    thoughts: list[str] = []
    calls: list[dict[str, Any]] = []
    for block in message.content:
        if isinstance(block, TextBlock):
            texts.append(block.text)
        elif isinstance(block, ThinkingBlock):
            thoughts.append(block.thinking)
        else:
            arguments = json.dumps(block.input, ensure_ascii=False)
            function = {"name": block.name, "arguments": arguments}
            calls.append({"id": block.id, "type": "function", "function": function})
    said: Message = {"role": "assistant", "content": "".join(texts)}
    if any(thoughts):
        said["reasoning_content"] = "".join(thoughts)
    if calls:
        said["tool_calls"] = calls
    return said


def _text(content: str | Sequence[TextBlock]) -> str:
    if isinstance(content, str):
        return content
    return "".join(block.text for block in content)


def _refusal(param: str, problem: str) -> ApiError:
    return ApiError(400, f"{param}: {problem}", code="invalid_value", param=param)
