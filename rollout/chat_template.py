"""A Jinja chat template, rendered as transformers renders it but never by the clock."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from datetime import date, datetime, time
from typing import Any

from palestra.types import Message, ToolSchema


class ChatTemplate:
    """Prints prepared messages (see `template_messages`) as text.

    `variables` are the template's own: special tokens such as `bos_token`, options such as
    `enable_thinking`. `today` is what a template that asks for the date is told: a conversation
    that changes at midnight would not extend.
    """

    def __init__(self, source: str, *, variables: Mapping[str, Any], today: date) -> None:
        self.source = source
        self.sha256 = hashlib.sha256(source.encode()).hexdigest()
        self.asks_the_date = "strftime_now" in source
        midnight = datetime.combine(today, time())
        self._variables = {**variables, "strftime_now": midnight.strftime}

    def render(
        self, messages: Sequence[Message], tools: Sequence[ToolSchema] = (), *, prompt: bool = False
    ) -> str:
        """The conversation's text; `prompt` adds the header of the assistant's next reply.

        Raises ValueError if the template refuses the conversation.
        """
        from jinja2.exceptions import TemplateError
        from transformers.utils.chat_template_utils import render_jinja_template

        try:
            texts, _ = render_jinja_template(
                conversations=[list(messages)],
                tools=list(tools) or None,
                chat_template=self.source,
                add_generation_prompt=prompt,
                **self._variables,
            )
        except (TemplateError, TypeError, LookupError, AttributeError) as problem:
            raise ValueError(f"the chat template refuses this conversation: {problem}") from problem
        text: str = texts[0]
        return text

    def shows(
        self, text: str, messages: Sequence[Message], tools: Sequence[ToolSchema] = ()
    ) -> bool:
        """Whether the rendering of a probe holds `text`; False where the template raises."""
        return self.takes(messages, tools) and text in self.render(messages, tools)

    def takes(self, messages: Sequence[Message], tools: Sequence[ToolSchema] = ()) -> bool:
        """Whether the template renders a probe without raising."""
        try:
            self.render(messages, tools)
        except ValueError:
            return False
        return True
