"""The body of chat completions: what is accepted, what is refused by name, what it asks for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Discriminator, Field, Tag, WithJsonSchema
from pydantic_core import PydanticCustomError

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
from palestra.rollout.serving.tool_schemas import check_json_schema, check_tools
from palestra.types import Message, Sampling, Structure

MAX_REPLIES = 128
_MAX_STOPS = 16
_MAX_STOP_CHARACTERS = 1000
_MAX_SEED = 2**63 - 1 - MAX_REPLIES  # each further reply has the next one

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


def refuse_all_but(*values: Any) -> Callable[[Any], Any]:
    """For fields that have one value here; a client that sends it may be told that it is."""

    def check(value: Any) -> Any:
        if value not in values:
            raise PydanticCustomError(
                "unsupported", f"not supported by this server: leave it out, or at {values[0]!r}"
            )
        return value

    return check


def _role(value: Any) -> str:
    given = value.get("role") if isinstance(value, dict) else None
    return "<system>" if given == "developer" else f"<{given}>"


Stop = Annotated[str, Field(min_length=1, max_length=_MAX_STOP_CHARACTERS)]
Zero = Annotated[float, AfterValidator(refuse_all_but(0)), WithJsonSchema({"enum": [0]})]
Empty = Annotated[
    dict[str, float],
    AfterValidator(refuse_all_but({})),
    WithJsonSchema({"type": "object", "maxProperties": 0}),
]


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


class StreamOptions(Body):
    """What a stream tells besides."""

    include_usage: bool | None = None
    include_obfuscation: Literal[False] | None = None


class SamplingFields(Body):
    """What chat completions and completions share; see docs/serving.md."""

    model: str
    frequency_penalty: Zero | None = None
    logit_bias: Empty | None = None
    n: Annotated[int, Field(ge=1, le=MAX_REPLIES)] | None = None
    presence_penalty: Zero | None = None
    seed: Annotated[int, Field(ge=-_MAX_SEED, le=_MAX_SEED)] | None = None
    stop: (
        Annotated[
            Annotated[Stop, Tag("<text>")]
            | Annotated[list[Stop], Field(max_length=_MAX_STOPS), Tag("<list>")],
            Discriminator(text_or_list),
        ]
        | None
    ) = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_k: Annotated[int, Field(ge=-1, le=NO_TOKEN_LIMIT)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    user: Ignored = None

    @property
    def stops(self) -> tuple[str, ...]:
        """The stop strings."""
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())

    @property
    def wants_usage(self) -> bool:
        """Whether the stream ends with the usage. Raises ApiError where there is no stream."""
        if self.stream_options is not None and not self.stream:
            raise ApiError(
                400,
                "stream_options is for streams: set stream to true or leave it out",
                code="invalid_value",
                param="stream_options",
            )
        return self.stream_options is not None and bool(self.stream_options.include_usage)

    def sampling(self, *, max_tokens: int, structure: Structure | None = None) -> Sampling:
        """How tokens are drawn."""
        return Sampling(
            temperature=1.0 if self.temperature is None else self.temperature,
            top_p=1.0 if self.top_p is None else self.top_p,
            top_k=max(0, self.top_k or 0),
            max_tokens=max_tokens,
            seed=self.seed,
            structure=structure,
        )


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
        structure = self._structure()
        if structure is not None and tools and choice != "none":
            raise _contradiction(
                "response_format",
                'with tools a reply may be a call, which fits no format: set tool_choice to "none"',
            )
        return ReplyRequest(
            messages=tuple(message.message() for message in self.messages),
            tools=tools,
            tool_choice=choice,
            tool_name=name,
            parallel_tool_calls=self.parallel_tool_calls is not False,
            sampling=self.sampling(max_tokens=self._max_tokens(), structure=structure),
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
