"""POST /v1/completions over a tiny random model."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest


def ask(url: str, **fields: Any) -> httpx.Response:
    body = {"model": "tiny", "prompt": "1 + 2", "max_tokens": 12, "seed": 3, **fields}
    return httpx.post(f"{url}/v1/completions", json=body, timeout=60)


def answer_of(url: str, **fields: Any) -> Any:
    answer = ask(url, **fields)
    assert answer.status_code == 200, answer.text
    return answer.json()


def chunks_of(url: str, **fields: Any) -> list[Any]:
    answer = ask(url, stream=True, **fields)
    assert answer.status_code == 200, answer.text
    *chunks, done, rest = answer.text.split("\n\n")
    assert (done, rest) == ("data: [DONE]", "")
    return [json.loads(chunk.removeprefix("data: ")) for chunk in chunks]


def test_a_text_is_continued(tiny_url: str) -> None:
    answer = answer_of(tiny_url)
    assert answer["object"] == "text_completion"
    assert answer["id"].startswith("cmpl-")
    (choice,) = answer["choices"]
    assert choice["finish_reason"] in ("stop", "length")
    assert choice["text"]
    usage = answer["usage"]
    assert 1 <= usage["completion_tokens"] <= 12
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]
    assert answer_of(tiny_url)["choices"] == answer["choices"]  # the seed is the same


def test_a_stream_adds_up_to_the_whole(tiny_url: str) -> None:
    wanted = {"logprobs": 2, "n": 2, "prompt": ["1 + 2", "3"]}
    whole = answer_of(tiny_url, **wanted)
    *chunks, last = chunks_of(tiny_url, **wanted, stream_options={"include_usage": True})
    assert (last["choices"], last["usage"]["total_tokens"]) == ([], whole["usage"]["total_tokens"])
    for choice in whole["choices"]:
        own = [c["choices"][0] for c in chunks if c["choices"][0]["index"] == choice["index"]]
        assert "".join(chunk["text"] for chunk in own) == choice["text"]
        assert own[-1]["finish_reason"] == choice["finish_reason"]
        told = [chunk["logprobs"] for chunk in own if chunk["logprobs"]]
        for name in ("tokens", "text_offset"):
            assert [one for part in told for one in part[name]] == choice["logprobs"][name]


def test_ids_are_continued_as_they_are_and_prompts_come_in_lists(tiny_url: str) -> None:
    prompts: list[Any] = ["1 + 2", [10, 11], ["1 + 2", "3"], [[10, 11], [12]]]
    counts = [len(answer_of(tiny_url, prompt=prompt)["choices"]) for prompt in prompts]
    assert counts == [1, 1, 2, 2]
    assert answer_of(tiny_url, prompt=[10, 11])["usage"]["prompt_tokens"] == 2
    both = answer_of(tiny_url, prompt=[[10, 11], [12]], n=2)
    assert [choice["index"] for choice in both["choices"]] == [0, 1, 2, 3]


def test_log_probabilities_are_one_for_each_token(tiny_url: str) -> None:
    answer = answer_of(tiny_url, logprobs=3)
    (choice,) = answer["choices"]
    logprobs = choice["logprobs"]
    ended = choice["finish_reason"] == "stop"  # that token is not part of the text
    assert len(logprobs["tokens"]) == answer["usage"]["completion_tokens"] - ended
    assert all(logprob < 0 for logprob in logprobs["token_logprobs"])
    assert all(1 <= len(top) <= 3 for top in logprobs["top_logprobs"])
    assert logprobs["text_offset"][0] == 0


def test_a_stop_string_ends_the_text_before_it(tiny_url: str) -> None:
    whole = answer_of(tiny_url, max_tokens=40)["choices"][0]["text"]
    stop = whole[4:6]
    (choice,) = answer_of(tiny_url, max_tokens=40, stop=[stop, "never"])["choices"]
    assert choice["text"] == whole[: whole.index(stop)]
    assert choice["finish_reason"] == "stop"
    streamed = "".join(
        c["choices"][0]["text"] for c in chunks_of(tiny_url, max_tokens=40, stop=stop)
    )
    assert streamed == choice["text"]


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"echo": True}, "echo"),
        ({"best_of": 2}, "best_of"),
        ({"suffix": "x"}, "suffix"),
        ({"logit_bias": {"1": 1}}, "logit_bias"),
        ({"prompt": []}, "prompt"),
        ({"prompt": ""}, "prompt"),
        ({"prompt": None}, "prompt"),
        ({"prompt": [-1]}, "prompt[0]"),
        ({"prompt": [1, "x"]}, "prompt[1]"),
        ({"prompt": [[]]}, "prompt[0]"),
        ({"prompt": ["x"] * 129}, "prompt"),
        ({"prompt": ["x"] * 65, "n": 2}, "n"),
        ({"prompt": "1" * 300}, "prompt"),
        ({"prompt": [2**31 - 1]}, "prompt"),
        ({"logprobs": 21}, "logprobs"),
        ({"messages": []}, "messages"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_what_cannot_be_done_is_refused_by_name(
    tiny_url: str, fields: dict[str, Any], param: str
) -> None:
    answer = ask(tiny_url, **fields)
    assert answer.status_code == 400, answer.text
    assert answer.json()["error"]["param"] == param


def test_an_unknown_model_is_a_404(tiny_url: str) -> None:
    assert ask(tiny_url, model="davinci").status_code == 404
