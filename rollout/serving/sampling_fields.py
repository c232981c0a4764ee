"""What chat completions and completions share in their requests: sampling, stops, streams."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Discriminator, Field, Tag, WithJsonSchema
from pydantic_core import PydanticCustomError

from palestra.rollout.serving.api_error import ApiError
from palestra.rollout.serving.request_fields import NO_TOKEN_LIMIT, Body, Ignored, text_or_list
from palestra.types import Sampling, Structure

MAX_REPLIES = 128
_MAX_STOPS = 16
_MAX_STOP_CHARACTERS = 1000
_MAX_SEED = 2**63 - 1 - MAX_REPLIES  # each further reply has the next one


def refuse_all_but(*values: Any) -> Callable[[Any], Any]:
    """For fields that have one value here; a client that sends it may be told that it is."""

    def check(value: Any) -> Any:
        if value not in values:
            raise PydanticCustomError(
                "unsupported", f"not supported by this server: leave it out, or at {values[0]!r}"
            )
        return value

    return check


Stop = Annotated[str, Field(min_length=1, max_length=_MAX_STOP_CHARACTERS)]
Zero = Annotated[float, AfterValidator(refuse_all_but(0)), WithJsonSchema({"enum": [0]})]
Empty = Annotated[
    dict[str, float],
    AfterValidator(refuse_all_but({})),
    WithJsonSchema({"type": "object", "maxProperties": 0}),
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
