"""Requests of OpenAI's Responses API, and what they ask of a `Replier`."""

from __future__ import annotations

from collections.abc import Iterator
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

LOGPROBS = "message.output_text.logprobs"


class TextContent(Body):
    """Text of a message, or of what a function returned."""

    type: Literal["input_text", "output_text"]
    text: str
    annotations: Ignored = None
    logprobs: Ignored = None
    parsed: Ignored = None  # OpenAI's client adds it, and sends it back


class RefusalContent(Body):
    """A refusal that a model wrote."""

    type: Literal["refusal"]
    refusal: str


Part = Annotated[
    Annotated[TextContent, Tag("<input_text>")]
    | Annotated[TextContent, Tag("<output_text>")]
    | Annotated[RefusalContent, Tag("<refusal>")],
    Discriminator(kind()),
]
Content = Annotated[
    Annotated[str, Tag("<text>")] | Annotated[list[Part], Tag("<list>")],
    Discriminator(text_or_list),
]


class MessageItem(Body):
    """A message of the conversation."""

    type: Literal["message"] = "message"
    role: Literal["user", "assistant", "system", "developer"]
    content: Content
    id: Ignored = None
    status: Ignored = None
    phase: Ignored = None


class FunctionCallItem(Body):
    """A call that the model made in an earlier response."""

    type: Literal["function_call"]
    call_id: str = Field(min_length=1)
    name: str
    arguments: str
    id: Ignored = None
    status: Ignored = None
    parsed_arguments: Ignored = None  # OpenAI's client adds it, and sends it back


class FunctionCallOutputItem(Body):
    """What a call returned."""

    type: Literal["function_call_output"]
    call_id: str
    output: Content
    id: Ignored = None
    status: Ignored = None


class SummaryText(Body):
    """A part of a summary."""

    type: Literal["summary_text"]
    text: str


class ReasoningText(Body):
    """A part of the model's reasoning."""

    type: Literal["reasoning_text"]
    text: str


class ReasoningItem(Body):
    """What the model thought in an earlier response."""

    type: Literal["reasoning"]
    summary: list[SummaryText] | None = None
    content: list[ReasoningText] | None = None
    encrypted_content: Unsupported = None
    id: Ignored = None
    status: Ignored = None


Item = Annotated[
    Annotated[MessageItem, Tag("<message>")]
    | Annotated[FunctionCallItem, Tag("<function_call>")]
    | Annotated[FunctionCallOutputItem, Tag("<function_call_output>")]
    | Annotated[ReasoningItem, Tag("<reasoning>")],
    Discriminator(kind("message")),
]


class FunctionTool(Body):
    """A function that the model may call; `strict` has no effect."""

    type: Literal["function"]
    name: str
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class NamedFunction(Body):
    """The function that must be called."""

    type: Literal["function"]
    name: str


class PlainTextFormat(Body):
    """Plain text."""

    type: Literal["text"]


class JsonObjectFormat(Body):
    """Any JSON object."""

    type: Literal["json_object"]


class JsonSchemaFormat(Body):
    """JSON that fits a schema; it always does, whatever `strict` says."""

    type: Literal["json_schema"]
    name: str
    json_schema: dict[str, Any] = Field(alias="schema")
    description: str | None = None
    strict: bool | None = None


class TextOptions(Body):
    """The form of the text."""

    format: (
        Annotated[
            Annotated[PlainTextFormat, Tag("<text>")]
            | Annotated[JsonObjectFormat, Tag("<json_object>")]
            | Annotated[JsonSchemaFormat, Tag("<json_schema>")],
            Discriminator(kind()),
        ]
        | None
    ) = None
    verbosity: Unsupported = None


class EventOptions(Body):
    """Events are never padded."""

    include_obfuscation: Literal[False] = False


ToolChoice = Annotated[
    Annotated[Literal["auto", "none", "required"], Tag("<text>")]
    | Annotated[NamedFunction, Tag("<function>")],
    Discriminator(kind()),
]


class ResponsesRequest(Body):
    """The body of POST /v1/responses."""

    model: str
    input: Annotated[
        Annotated[str, Tag("<text>")] | Annotated[list[Item], Field(min_length=1), Tag("<list>")],
        Discriminator(text_or_list),
    ]
    instructions: str | None = None
    tools: list[FunctionTool] | None = None
    tool_choice: ToolChoice | None = None
    parallel_tool_calls: bool | None = None
    text: TextOptions | None = None
    temperature: float | None = Field(default=None, ge=0.0, le=2.0)
    top_p: float | None = Field(default=None, gt=0.0, le=1.0)
    max_output_tokens: int | None = Field(default=None, ge=1)
    include: list[Literal["message.output_text.logprobs"]] | None = None
    top_logprobs: int | None = Field(default=None, ge=0, le=20)
    stream: bool | None = None
    stream_options: EventOptions | None = None
    metadata: Annotated[dict[str, str], Field(max_length=16)] | None = None
    user: str | None = None
    safety_identifier: Ignored = None
    prompt_cache_key: Ignored = None
    store: Literal[False] | None = None
    truncation: Literal["disabled"] | None = None
    service_tier: Literal["auto", "default"] | None = None
    background: Literal[False] | None = None
    previous_response_id: Unsupported = None
    conversation: Unsupported = None
    prompt: Unsupported = None
    reasoning: Unsupported = None
    max_tool_calls: Unsupported = None
    context_management: Unsupported = None
    moderation: Unsupported = None
    prompt_cache_options: Unsupported = None
    prompt_cache_retention: Unsupported = None


def wants_logprobs(body: ResponsesRequest) -> bool:
    """Whether the text comes with log-probabilities."""
    return LOGPROBS in (body.include or ())


def reply_request(body: ResponsesRequest) -> ReplyRequest:
    """What a request asks of the model. Raises ApiError (400)."""
    tools = check_functions([tool.model_dump(exclude={"type"}) for tool in body.tools or ()])
    tool_choice, tool_name = _tool_choice(body, tools)
    if body.top_logprobs and not wants_logprobs(body):
        raise _refusal("top_logprobs", f'they come only with "{LOGPROBS}" in include')
    return ReplyRequest(
        messages=tuple(_conversation(body)),
        tools=tools,
        tool_choice=tool_choice,
        tool_name=tool_name,
        parallel_tool_calls=body.parallel_tool_calls is not False,
        sampling=Sampling(
            temperature=1.0 if body.temperature is None else body.temperature,
            top_p=1.0 if body.top_p is None else body.top_p,
            max_tokens=min(body.max_output_tokens or NO_TOKEN_LIMIT, NO_TOKEN_LIMIT),
            structure=_structure(body.text),
        ),
        top_logprobs=(body.top_logprobs or 0) if wants_logprobs(body) else None,
    )


def _tool_choice(
    body: ResponsesRequest, tools: tuple[ToolSchema, ...]
) -> tuple[Literal["auto", "none", "required", "function"], str | None]:
    choice = body.tool_choice or "auto"
    if isinstance(choice, NamedFunction):
        if all(tool["function"]["name"] != choice.name for tool in tools):
            raise _refusal("tool_choice.name", f'no tool is called "{choice.name:.64}"')
        return "function", choice.name
    if choice == "required" and not tools:
        raise _refusal("tool_choice", "there are no tools to choose from")
    return choice, None


def _structure(text: TextOptions | None) -> Structure | None:
    form = text.format if text else None
    if isinstance(form, JsonObjectFormat):
        return Structure(json_schema={"type": "object"})
    if isinstance(form, JsonSchemaFormat):
        check_json_schema(form.json_schema, at="text.format.schema")
        # An empty schema allows any JSON; a structure needs something to go by.
        return Structure(json_schema=form.json_schema or {"type": "object"})
    return None


def _conversation(body: ResponsesRequest) -> Iterator[Message]:
    """The messages that the items are: those that make up one reply become one message."""
    if body.instructions:
        yield {"role": "system", "content": body.instructions}
    if isinstance(body.input, str):
        yield {"role": "user", "content": body.input}
        return
    said: Message | None = None
    called: set[str] = set()
    for index, item in enumerate(body.input):
        if isinstance(item, MessageItem) and item.role != "assistant":
            if said:
                yield said
                said = None
            role = "user" if item.role == "user" else "system"
            yield {"role": role, "content": _text(item.content)}
        elif isinstance(item, FunctionCallOutputItem):
            if said:
                yield said
                said = None
            if item.call_id not in called:
                problem = f'no function_call before it has the call_id "{item.call_id:.100}"'
                raise _refusal(f"input[{index}].call_id", problem)
            yield {"role": "tool", "tool_call_id": item.call_id, "content": _text(item.output)}
        else:
            if said and _begins_another(item, said):
                yield said
                said = None
            said = said or {"role": "assistant", "content": ""}
            _add(said, item)
            if isinstance(item, FunctionCallItem):
                called.add(item.call_id)
    if said:
        yield said


def _begins_another(item: MessageItem | FunctionCallItem | ReasoningItem, said: Message) -> bool:
    """Whether an item of the assistant's cannot belong to the same reply as those before it.

    A reply's reasoning comes first; its text may go on behind a call.
    """
    if isinstance(item, ReasoningItem):
        return bool(said["content"] or said.get("tool_calls"))
    if isinstance(item, MessageItem):
        return bool(said["content"]) and not said.get("tool_calls")
    return False


def _add(said: Message, item: MessageItem | FunctionCallItem | ReasoningItem) -> None:
    if isinstance(item, ReasoningItem):
        text = "".join(part.text for part in item.content or item.summary or ())
        if text:
            said["reasoning_content"] = said.get("reasoning_content", "") + text
    elif isinstance(item, MessageItem):
        said["content"] += _text(item.content)
    else:
        function = {"name": item.name, "arguments": item.arguments}
        call = {"id": item.call_id, "type": "function", "function": function}
        said.setdefault("tool_calls", []).append(call)


def _text(content: str | list[TextContent | RefusalContent]) -> str:
    if isinstance(content, str):
        return content
    return "".join(part.text if isinstance(part, TextContent) else part.refusal for part in content)


def _refusal(param: str, problem: str) -> ApiError:
    return ApiError(400, f"{param}: {problem}", code="invalid_value", param=param)
