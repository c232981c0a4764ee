"""The small file that makes a fine-tuned model folder behave as its base did."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import date
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

FILE_NAME = "chat_format.json"


@dataclass(frozen=True, kw_only=True, slots=True)
class ChatFormatSettings:
    """What a model's prompts depend on besides its tokenizer."""

    template: str  # Jinja source
    tool_format: str | None = None  # None: found out from the template
    history: str = "template"  # or "keep"
    options: Mapping[str, Any] = field(default_factory=dict)  # variables of the template
    stop_ids: tuple[int, ...] = ()  # besides the end of turn and the end-of-text token
    today: date = field(default_factory=date.today)  # told to templates that ask for the date


def write_settings(settings: ChatFormatSettings, model_dir: Path) -> None:
    """Write `chat_format.json` into a model folder."""
    template = settings.template
    data = {
        "tool_format": settings.tool_format,
        "history": settings.history,
        "options": dict(settings.options),
        "stop_ids": list(settings.stop_ids),
        "today": settings.today.isoformat(),
        "template_sha256": sha256(template.encode()).hexdigest(),
        "template": template,
    }
    text = json.dumps(data, indent=2, ensure_ascii=False) + "\n"
    (model_dir / FILE_NAME).write_text(text, encoding="utf-8")


def read_settings(model_dir: Path, tokenizer: PreTrainedTokenizerBase) -> ChatFormatSettings:
    """The settings of a model folder; those of its tokenizer where `chat_format.json` is missing.

    Raises ValueError if there is no chat template, if the file cannot be read, or if the
    tokenizer's template is not the one that the model was trained with.
    """
    data = _read_json(model_dir / FILE_NAME)
    template = data.get("template")
    if template is None:
        template = template_of(tokenizer, model_dir)
    elif sha256(template.encode()).hexdigest() != data.get("template_sha256"):
        raise ValueError(f"{model_dir / FILE_NAME}: the template was edited; restore or delete it")
    elif tokenizer.chat_template and template_of(tokenizer, model_dir) != template:
        raise ValueError(
            f"{model_dir}: the tokenizer's chat template is not the one that the model was trained "
            f"with; restore it, or delete {FILE_NAME} to use the new one"
        )
    defaults = ChatFormatSettings(template=template)
    return ChatFormatSettings(
        template=template,
        tool_format=data.get("tool_format"),
        history=data.get("history", defaults.history),
        options=data.get("options", {}),
        stop_ids=(*data.get("stop_ids", ()), *_end_ids(model_dir)),
        today=date.fromisoformat(data["today"]) if "today" in data else defaults.today,
    )


def load_tokenizer(model_dir: Path) -> PreTrainedTokenizerBase:
    """The tokenizer of a model folder. Raises ValueError if there is none."""
    from transformers import AutoTokenizer

    if not model_dir.is_dir():
        raise ValueError(f"no model folder at {model_dir}")
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(model_dir)
    except (OSError, ValueError, KeyError, TypeError) as problem:
        reason = str(problem).partition("\n")[0]
        raise ValueError(f"{model_dir} has no tokenizer that loads: {reason}") from problem
    return tokenizer


def template_of(tokenizer: PreTrainedTokenizerBase, name: str | Path = "the tokenizer") -> str:
    """The tokenizer's chat template, the one for tools if it has several."""
    template = tokenizer.chat_template
    if isinstance(template, dict):
        template = template.get("tool_use") or template.get("default")
    if not template:
        raise ValueError(
            f"{name} has no chat template; use an instruction-tuned model, or set "
            "tokenizer.chat_template before saving it"
        )
    return str(template)


def _end_ids(model_dir: Path) -> Iterable[int]:
    """The tokens that end a generation, as the model's own configuration says."""
    ids = _read_json(model_dir / "generation_config.json").get("eos_token_id") or ()
    return (ids,) if isinstance(ids, int) else tuple(ids)


def _read_json(path: Path) -> dict[str, Any]:
    if not path.exists():
        return {}
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as problem:
        raise ValueError(f"{path} cannot be read: {problem}") from problem
    if not isinstance(data, dict):
        raise ValueError(f"{path} should hold a JSON object, got {type(data).__name__}")
    return data
