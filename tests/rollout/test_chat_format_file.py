"""A model folder carries its chat format, and a folder that cannot be used says why."""

from __future__ import annotations

import json
from datetime import date
from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerFast

from palestra.rollout.chat_format import ChatFormat
from palestra.rollout.chat_format_file import FILE_NAME, ChatFormatSettings
from palestra.trainer.tiny import train_tokenizer

ASKED = [{"role": "user", "content": "What is 17 + 25?"}]
DATED = """\
{%- for m in messages -%}
{{- '<|im_start|>' + m.role + strftime_now(' %Y') + '\\n' + m.content + '<|im_end|>\\n' -}}
{%- endfor -%}"""


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    return train_tokenizer([ASKED], [])


def test_a_saved_format_renders_the_same_after_loading(tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer()
    chat = ChatFormat.from_tokenizer(tokenizer, history="keep", options={"style": "short"})
    tokenizer.save_pretrained(tmp_path)
    chat.save(tmp_path)
    loaded = ChatFormat.load(tmp_path)
    assert loaded.settings == chat.settings
    assert loaded.render(ASKED) == chat.render(ASKED)
    assert ChatFormat.load(tmp_path, history="template").settings.history == "template"


def test_a_base_models_folder_needs_no_file_of_ours(tmp_path: Path) -> None:
    tiny_tokenizer().save_pretrained(tmp_path)
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": [7, 8]}')
    chat = ChatFormat.load(tmp_path)
    assert chat.tool_format == "hermes"
    assert {7, 8} < chat.stop_ids


def test_the_date_that_a_model_was_trained_with_stays(tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = DATED
    tokenizer.save_pretrained(tmp_path)
    chat = ChatFormat(tokenizer, ChatFormatSettings(template=DATED, today=date(1999, 1, 1)))
    chat.save(tmp_path)
    loaded = ChatFormat.load(tmp_path)
    assert "user 1999" in tokenizer.decode(loaded.render(ASKED))


def test_a_template_other_than_the_trained_one_is_refused(tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer()
    ChatFormat.from_tokenizer(tokenizer).save(tmp_path)
    tokenizer.chat_template = DATED
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="not the one that the model was trained with"):
        ChatFormat.load(tmp_path)


def test_an_edited_file_is_refused(tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.save_pretrained(tmp_path)
    ChatFormat.from_tokenizer(tokenizer).save(tmp_path)
    path = tmp_path / FILE_NAME
    data = json.loads(path.read_text())
    path.write_text(json.dumps({**data, "template": data["template"] + " "}))
    with pytest.raises(ValueError, match="the template was edited"):
        ChatFormat.load(tmp_path)
    path.write_text("{")
    with pytest.raises(ValueError, match="cannot be read"):
        ChatFormat.load(tmp_path)


def test_a_missing_folder_tokenizer_or_template_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no model folder at"):
        ChatFormat.load(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="has no tokenizer that loads") as problem:
        ChatFormat.load(tmp_path)
    assert "\n" not in str(problem.value)
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = None
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="has no chat template"):
        ChatFormat.load(tmp_path)


@pytest.mark.parametrize(
    ("template", "complaint"),
    [
        ("{% if %}", "no Jinja template"),
        ("{{ raise_exception('no') }}", "refuses this conversation: no"),
        ("{{ messages[0].content }}", "does not print an assistant's plain text"),
        ("{% for m in messages %}{{ m.content }}{% endfor %}", "no special token"),
        (
            "{% for m in messages %}{{ m.content }}{% for c in m.tool_calls or [] %}"
            "call {{ c.function.name }} {% endfor %}<|im_end|>{% endfor %}",
            'pass tool_format="hermes"',
        ),
    ],
)
def test_a_template_that_cannot_be_used_says_why(template: str, complaint: str) -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = template
    with pytest.raises(ValueError, match=complaint):
        ChatFormat.from_tokenizer(tokenizer)


def test_settings_out_of_range_are_named() -> None:
    with pytest.raises(ValueError, match="did you mean 'hermes'"):
        ChatFormat.from_tokenizer(tiny_tokenizer(), tool_format="hermess")
    with pytest.raises(ValueError, match="writes hermes calls, not llama3 ones"):
        ChatFormat.from_tokenizer(tiny_tokenizer(), tool_format="llama3")
    with pytest.raises(ValueError, match='history must be "template" or "keep"'):
        ChatFormat.from_tokenizer(tiny_tokenizer(), history="drop")
