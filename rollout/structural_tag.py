"""xgrammar's structural tags, which vLLM and SGLang take: JSON of a schema, or else a call."""

from __future__ import annotations

import json
from typing import Any

from palestra.types import CallShape, Structure


def structural_tag(structure: Structure) -> str:
    """The tag, as JSON text, of a structure with a `call`."""
    assert structure.call is not None
    reply = {"type": "json_schema", "json_schema": structure.json_schema}
    choices = {"type": "or", "elements": [reply, _call_format(structure.call)]}
    return json.dumps({"type": "structural_tag", "format": choices})


def _call_format(call: CallShape) -> dict[str, Any]:
    parts: list[dict[str, Any]] = [{"type": "json_schema", "json_schema": call.json_schema}]
    if call.prefix:
        parts.insert(0, {"type": "const_string", "value": call.prefix})
    if call.suffix:
        parts.append({"type": "const_string", "value": call.suffix})
    return parts[0] if len(parts) == 1 else {"type": "sequence", "elements": parts}
