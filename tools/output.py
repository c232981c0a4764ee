"""What a tool returns, as text that a model can read and a file can hold."""

from __future__ import annotations

import contextlib
import inspect
from typing import Any

from pydantic_core import PydanticSerializationError, to_json

MAX_OUTPUT_CHARS = 16_000


def as_text(value: Any) -> str:
    """Strings as they are, None as nothing, the rest as compact JSON or else its `str`.

    Bytes are shown if they are UTF-8, and named if they are not. Long output loses its middle, with
    a note; what UTF-8 cannot encode is replaced.
    """
    if inspect.isawaitable(value):
        close = getattr(value, "close", lambda: None)
        close()  # no "never awaited" warning beside the error
        raise TypeError("the tool returned an awaitable: define it with `async def`")
    if isinstance(value, str):
        text = value
    elif isinstance(value, bytes | bytearray | memoryview):
        text = decoded(bytes(value))
    elif value is None:
        return ""
    else:
        try:
            text = to_json(value, fallback=str).decode()
        except PydanticSerializationError:  # e.g. circular
            text = str(value)
    return printable(shortened(text))


def decoded(data: bytes) -> str:
    """The text that bytes are in UTF-8, or a note that they are none."""
    if b"\0" not in data:
        with contextlib.suppress(UnicodeDecodeError):
            return data.decode()
    return f"[binary data, {len(data):,} bytes, not shown]"


def shortened(text: str, max_chars: int = MAX_OUTPUT_CHARS) -> str:
    """The text, or its beginning and end with a note of how much is missing between them."""
    if len(text) <= max_chars:
        return text
    half = max_chars // 2
    return f"{text[:half]}\n[… {len(text) - 2 * half:,} characters cut …]\n{text[-half:]}"


def printable(text: str) -> str:
    """The text with NULs and lone surrogates replaced: no tokenizer, file or template fails."""
    if not text.isascii():
        text = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text.replace("\0", "�")
