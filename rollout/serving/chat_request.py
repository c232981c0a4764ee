"""The body of chat completions: what is accepted, what is refused by name, what it asks for."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Discriminator, Field, Tag, WithJsonSchema

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
from palestra.rollout.serving.sampling_fields import SamplingFields, refuse_all_but
from palestra.rollout.serving.tool_schemas import check_json_schema, check_tools
from palestra.types import Message, Structure

_TOOL = {
    "type": "object",
    "additionalProperties": False,
    "required": ["type", "function"],
    "properties": {
        "type": {"const": "function"},
        "function": {
            "type": "object",
            "additionalProperties": False,
            "required": ["name"],
            "properties": {
                "name": {"type": "string", "pattern": "^[a-zA-Z0-9_-]{1,64}$"},
                "description": {"type": ["string", "null"]},
                "parameters": {"type": ["object", "null"], "description": "a JSON Schema"},
                "strict": {"type": ["boolean", "null"]},
            },
        },
    },
}


def _role(value: Any) -> str:
    given = value.get("role") if isinstance(value, dict) else None
    return "<system>" if given == "developer" else f"<{given}>"


class TextPart(Body):
    """A part of a message."""

    type: Literal["text"]
    text: str


Part = Annotated[Annotated[TextPart, Tag("<text>")], Discriminator(kind())]
Content = Annotated[
    Annotated[str, Tag("<text>")] | Annotated[list[Part], Tag("<list>")],
    Discriminator(text_or_list),
]


class InstructionMessage(Body):
    """What the model is told to be."""

    role: Literal["system", "developer"]
    content: Content
    name: Unsupported = None

    def message(self) -> Message:
        """As the chat format takes it."""
        return {"role": "system", "content": _text(self.content)}


class UserMessage(Body):
    """What the user says."""

    role: Literal["user"]
    content: Content
    name: Unsupported = None

    def message(self) -> Message:
        """As the chat format takes it."""
        return {"role": "user", "content": _text(self.content)}


class ToolMessage(Body):
    """What a tool answered."""

    role: Literal["tool"]
    content: Content
    tool_call_id: str
    name: str | None = None

    def message(self) -> Message:
        """As the chat format takes it."""
        message: Message = {
            "role": "tool",
            "tool_call_id": self.tool_call_id,
            "content": _text(self.content),
        }
        if self.name is not None:
            message["name"] = self.name
        return message


class CalledFunction(Body):
    """The function of a call; its arguments are JSON text, as the model wrote it."""

    name: str
    arguments: str
    parsed_arguments: Ignored = None  # what OpenAI's client made of them


class ToolCall(Body):
    """A call that the model made; some clients send the index that a stream had."""

    id: str
    type: Literal["function"] = "function"
    function: CalledFunction
    index: Ignored = None


class AssistantMessage(Body):
    """An earlier reply, as this server gave it or as the client made it up."""

    role: Literal["assistant"]
    content: Content | None = None
    reasoning_content: str | None = None
    tool_calls: list[ToolCall] | None = None
    refusal: Unsupported = None
    audio: Unsupported = None
    function_call: Unsupported = None
    name: Unsupported = None
    annotations: Ignored = None
    parsed: Ignored = None  # what OpenAI's client made of the content

    def message(self) -> Message:
        """As the chat format takes it."""
        message: Message = {"role": "assistant", "content": _text(self.content)}
        if self.reasoning_content:
            message["reasoning_content"] = self.reasoning_content
        if self.tool_calls:
            message["tool_calls"] = [
                {
                    "id": call.id,
                    "type": "function",
                    "function": {
                        "name": call.function.name,
                        "arguments": call.function.arguments,
                    },
                }
                for call in self.tool_calls
            ]
        return message


AnyMessage = Annotated[
    Annotated[InstructionMessage, Tag("<system>")]
    | Annotated[UserMessage, Tag("<user>")]
    | Annotated[AssistantMessage, Tag("<assistant>")]
    | Annotated[ToolMessage, Tag("<tool>")],
    Discriminator(
        _role,
        custom_error_type="unknown_role",
        custom_error_message="the role must be system, developer, user, assistant or tool",
    ),
]


class FunctionChoice(Body):
    """Which function."""

    name: str


class NamedChoice(Body):
    """The model must call this function."""

    type: Literal["function"]
    function: FunctionChoice


class TextFormat(Body):
    """Any text."""

    type: Literal["text"]


class JsonFormat(Body):
    """Some JSON object."""

    type: Literal["json_object"]


class NamedSchema(Body):
    """A JSON Schema and what it is called."""

    name: str
    description: str | None = None
    schema_: Annotated[dict[str, Any], Field(alias="schema")]
    strict: bool | None = None


class SchemaFormat(Body):
    """JSON of a schema."""

    type: Literal["json_schema"]
    json_schema: NamedSchema


ResponseFormat = Annotated[
    Annotated[TextFormat, Tag("<text>")]
    | Annotated[JsonFormat, Tag("<json_object>")]
    | Annotated[SchemaFormat, Tag("<json_schema>")],
    Discriminator(kind()),
]


class ChatRequest(SamplingFields):
    """A request for chat completions. Unknown fields are refused, as OpenAI does."""

    messages: Annotated[list[AnyMessage], Field(min_length=1)]
    tools: list[Annotated[dict[str, Any], WithJsonSchema(_TOOL)]] | None = None
    tool_choice: (
        Annotated[
            Annotated[Literal["auto", "none", "required"], Tag("<text>")]
            | Annotated[NamedChoice, Tag("<list>")],
            Discriminator(text_or_list),
        ]
        | None
    ) = None
    parallel_tool_calls: bool | None = None
    response_format: ResponseFormat | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    modalities: Annotated[list[str], AfterValidator(refuse_all_but(["text"]))] | None = None
    store: Annotated[bool, AfterValidator(refuse_all_but(False))] | None = None
    service_tier: Annotated[str, AfterValidator(refuse_all_but("auto", "default"))] | None = None
    verbosity: Annotated[str, AfterValidator(refuse_all_but("medium"))] | None = None
    metadata: Ignored = None
    prompt_cache_key: Ignored = None
    prompt_cache_retention: Ignored = None
    safety_identifier: Ignored = None
    audio: Unsupported = None
    function_call: Unsupported = None
    functions: Unsupported = None
    prediction: Unsupported = None
    reasoning_effort: Unsupported = None
    web_search_options: Unsupported = None

    def reply_request(self) -> ReplyRequest:
        """What repliers answer. Raises ApiError (400) where fields contradict one another."""
        tools = check_tools(self.tools or ())
        choice, name = self._tool_choice({tool["function"]["name"] for tool in tools})
        return ReplyRequest(
            messages=tuple(message.message() for message in self.messages),
            tools=tools,
            tool_choice=choice,
            tool_name=name,
            parallel_tool_calls=self.parallel_tool_calls is not False,
            sampling=self.sampling(max_tokens=self._max_tokens(), structure=self._structure()),
            n=self.n or 1,
            stop=self.stops,
            top_logprobs=self._top_logprobs(),
        )

    def _tool_choice(
        self, known: set[str]
    ) -> tuple[Literal["auto", "none", "required", "function"], str | None]:
        choice = self.tool_choice or "auto"
        if not known and choice not in ("auto", "none"):
            raise _contradiction("tool_choice", "there are no tools to choose from")
        if isinstance(choice, str):
            return choice, None
        name = choice.function.name
        if name not in known:
            raise _contradiction("tool_choice", f'no tool is called "{name[:64]}"')
        return "function", name

    def _structure(self) -> Structure | None:
        wanted = self.response_format
        if isinstance(wanted, JsonFormat):
            return Structure(json_schema={"type": "object"})
        if isinstance(wanted, SchemaFormat):
            schema = wanted.json_schema.schema_
            check_json_schema(schema, at="response_format.json_schema.schema")
            # An empty schema allows any JSON; a structure needs something to go by.
            return Structure(json_schema=schema or {"type": "object"})
        return None

    def _max_tokens(self) -> int:
        given = {self.max_tokens, self.max_completion_tokens} - {None}
        if len(given) > 1:
            raise _contradiction("max_tokens", "it differs from max_completion_tokens: give one")
        return min((NO_TOKEN_LIMIT, *filter(None, given)))

    def _top_logprobs(self) -> int | None:
        if self.top_logprobs is not None and not self.logprobs:
            raise _contradiction("top_logprobs", "set logprobs to true as well, or leave it out")
        return (self.top_logprobs or 0) if self.logprobs else None


def _text(content: str | list[TextPart] | None) -> str:
    if content is None or isinstance(content, str):
        return content or ""
    return "".join(part.text for part in content)


def _contradiction(param: str, problem: str) -> ApiError:
    return ApiError(400, f"{param}: {problem}", code="invalid_value", param=param)
