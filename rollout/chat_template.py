"""A Jinja chat template, rendered as transformers renders it but never by the clock."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import date, datetime, time
from functools import lru_cache
from typing import Any, NoReturn

from jinja2 import Template, nodes
from jinja2.exceptions import TemplateError
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.runtime import LoopContext
from jinja2.sandbox import ImmutableSandboxedEnvironment

from palestra.types import Message, ToolSchema

_DICT_ATTRIBUTES = frozenset(dir(dict))
_LOOP_ATTRIBUTES = frozenset({"index", "index0", "first", "last", "length"})


class ChatTemplate:
    """Prints prepared messages (see `template_messages`) as text.

    `variables` are the template's own: special tokens such as `bos_token`, options such as
    `enable_thinking`. `today` is what a template that asks for the date is told: a conversation
    that changes at midnight would not extend. Raises ValueError if the source is no Jinja.
    """

    def __init__(self, source: str, *, variables: Mapping[str, Any], today: date) -> None:
        midnight = datetime.combine(today, time())
        self._variables = {"strftime_now": midnight.strftime, **variables}
        try:
            self._template = _compile(source)
        except TemplateError as problem:
            raise ValueError(f"the chat template is no Jinja template: {problem}") from problem

    def render(
        self, messages: Sequence[Message], tools: Sequence[ToolSchema] = (), *, prompt: bool = False
    ) -> str:
        """The conversation's text; `prompt` adds the header of the assistant's next reply.

        Raises ValueError if the template refuses the conversation.
        """
        try:
            return self._template.render(
                messages=messages,
                tools=tools or None,
                documents=None,
                add_generation_prompt=prompt,
                **self._variables,
            )
        # Templates are foreign code that trips over what it does not expect in any of these ways.
        except (TemplateError, TypeError, LookupError, AttributeError, ValueError) as problem:
            raise ValueError(f"the chat template refuses this conversation: {problem}") from problem

    def shows(
        self, text: str, messages: Sequence[Message], tools: Sequence[ToolSchema] = ()
    ) -> bool:
        """Whether the rendering of a probe holds `text`; False where the template raises."""
        try:
            return text in self.render(messages, tools)
        except ValueError:
            return False

    def takes(self, messages: Sequence[Message]) -> bool:
        """Whether the template renders a probe without raising."""
        return self.shows("", messages)


class _Environment(ImmutableSandboxedEnvironment):
    """The sandbox that transformers uses, with short cuts for what templates do most.

    Jinja looks for `message.role` among a dict's attributes before its keys, and examines each
    `loop.last` for safety. Templates render two to four times as fast without.
    """

    def getattr(self, obj: Any, attribute: str) -> Any:
        if type(obj) is dict and attribute not in _DICT_ATTRIBUTES:
            if attribute in obj:
                return obj[attribute]
            return self.undefined(obj=obj, name=attribute)
        if type(obj) is LoopContext and attribute in _LOOP_ATTRIBUTES:
            return getattr(obj, attribute)
        return super().getattr(obj, attribute)


class _Generation(Extension):
    """`{% generation %}`, which marks the assistant's words for trainers and prints nothing."""

    tags = {"generation"}  # noqa: RUF012 - jinja2 declares it so

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.Scope(body, lineno=line)


@lru_cache(maxsize=32)
def _compile(source: str) -> Template:
    environment = _Environment(
        trim_blocks=True,
        lstrip_blocks=True,
        extensions=[_Generation, "jinja2.ext.loopcontrols"],
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise
    return environment.from_string(source)


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(
        value,
        ensure_ascii=ensure_ascii,
        indent=indent,
        separators=separators,
        sort_keys=sort_keys,
    )


def _raise(message: str) -> NoReturn:
    raise TemplateError(message)
