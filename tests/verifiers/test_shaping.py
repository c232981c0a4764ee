import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from palestra.types import AGENT, Episode, Message, Outcome, Score, Task, Turn
from palestra.verifiers import (
    Part,
    Rubric,
    language_consistency,
    length_reward,
    number,
    overlong_penalty,
    repetition_penalty,
    think_answer_format,
    tool_call_cost,
    tool_call_count,
)
from palestra.verifiers.group import judge_group
from palestra.verifiers.shaping_group import sampled_tokens

Judge = Callable[..., Score]
Calling = Callable[..., list[Message]]


def said(content: str, thinking: str | None = None) -> list[Message]:
    message: Message = {"role": "assistant", "content": content}
    if thinking is not None:
        message["reasoning_content"] = thinking
    return [{"role": "user", "content": "<think>?</think><answer>?</answer>"}, message]


@pytest.mark.parametrize(
    "messages",
    [
        said("<think>hm</think><answer>42</answer>"),
        said("  <think>hm\n</think>\n\n<answer>\n42</answer>\n"),
        said("<answer>42</answer>", thinking="hm"),
    ],
)
def test_thinking_and_answer_in_their_tags_are_the_format(
    judge: Judge, messages: list[Message]
) -> None:
    assert judge(think_answer_format, "42", messages=messages).reward == 1.0


@pytest.mark.parametrize(
    ("messages", "why"),
    [
        (said(""), "no <think>"),
        (said("42"), "no <think>"),
        (said("<answer>42</answer>"), "no <think>"),
        (said("hm <think>hm</think><answer>42</answer>"), "no <think>"),
        (said("<think>hm"), "not closed"),
        (said("", thinking="hm"), "no <answer>"),
        (said("42", thinking="hm"), "no <answer>"),
        (said("<think> </think><answer>42</answer>"), "<think> is empty"),
        (said("<answer>42</answer>", thinking=" "), "no <think>|is empty"),
        (said("<think>hm</think><answer> </answer>"), "<answer> is empty"),
        (said("<think>hm</think><answer></answer>"), "<answer> is empty"),
        (said("<think>hm</think>so<answer>42</answer>"), "no <answer>"),
        (said("<think>hm</think><answer>42</answer>!"), "no <answer>"),
        (said("<think>hm</think><answer>1</answer><answer>2</answer>"), "a tag inside"),
        (said("<think>a</think><think>b</think><answer>2</answer>"), "no <answer>"),
        (said("<think><think>b</think><answer>2</answer>"), "a tag inside"),
        (said("<think>b</think><answer><think>2</think></answer>"), "a tag inside"),
        (said("<answer>2</answer>", thinking="b</think><answer>1</answer>"), "a tag inside"),
        (said("<answer>", thinking="b"), "no <answer>"),
    ],
)
def test_anything_else_is_not_the_format(judge: Judge, messages: list[Message], why: str) -> None:
    score = judge(think_answer_format, "42", messages=messages)
    assert (score.value, score.reward) == (0.0, 0.0)
    assert any(part in score.explanation for part in why.split("|"))


@pytest.mark.parametrize(
    ("text", "reward"),
    [
        ("", -1.0),
        (" ... ", -1.0),
        ("one", 0.0),
        ("one two three four", 0.0),
        ("a b c a b c", -1 / 4),
        ("A b. C! a, B c", -1 / 4),
        ("x x x x x", -2 / 3),
        ("x " * 1_000, 1 / 998 - 1),
        ("重复重复重复", -2 / 4),
    ],
)
def test_repetition_is_the_share_of_trigrams_that_came_before(
    judge: Judge, text: str, reward: float
) -> None:
    assert judge(repetition_penalty(), text, messages=said(text)).reward == pytest.approx(reward)
    assert judge(repetition_penalty(), "", messages=said("", text)).reward == pytest.approx(reward)


def test_repetition_over_several_replies_counts(judge: Judge) -> None:
    messages = said("a b c") + said("a b c")
    assert judge(repetition_penalty(), "", messages=messages).reward == -1 / 4
    assert judge(repetition_penalty(1), "", messages=messages).reward == -3 / 6


@pytest.mark.parametrize(
    ("script", "text", "share"),
    [
        ("latin", "", 0.0),
        ("latin", "1 + 1 = 2", 0.0),
        ("latin", "The answer is 42.", 1.0),
        ("latin", "Élan überall", 1.0),
        ("latin", "the 答案 is", 2 / 4),
        ("latin", "let π be x, and θ > 0 so", 1.0),
        ("latin", "ответ is", 1 / 2),
        ("latin", "mixеd word", 1 / 2),
        ("han", "答案是 x", 1.0),
        ("han", "答案是 forty two", 3 / 5),
        ("japanese", "答えはよん", 1.0),
        ("korean", "답은 사십이 answer", 2 / 3),
        ("cyrillic", "ответ сорок", 1.0),
    ],
)
def test_language_is_the_share_of_words_in_its_script(
    judge: Judge, script: str, text: str, share: float
) -> None:
    verifier = language_consistency(script)
    assert judge(verifier, text, messages=said(text)).reward == pytest.approx(share)


def test_tool_calls_are_counted_up_to_a_bound(judge: Judge, calling: Calling) -> None:
    assert judge(tool_call_count, "", messages=calling(("f", {}), ("g", {}))).reward == 2.0
    assert judge(tool_call_count, "").reward == 0.0
    assert judge(tool_call_count, "", messages=calling(*[("f", {})] * 2_000)).reward == 1_000.0


# Lengths and scores


def episode(*turn_tokens: int, value: float = 1.0, calls: int = 0) -> Episode:
    call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    turns = [
        Turn(
            message={"role": "assistant", "content": "x", "tool_calls": [call] * calls},
            completion_ids=tuple(range(tokens)),
            observation=({"role": "tool", "content": "long " * 1_000},),
        )
        for tokens in turn_tokens
    ]
    return Episode(
        id="t/0",
        env_id="e",
        task=Task(id="t", messages=()),
        prompt=(),
        turns=tuple(turns),
        outcome=Outcome.SCORED,
        stop_reason="answer",
        scores={AGENT: Score(value=value, reward=0.0)},
        rewards={AGENT: 0.0},
    )


def added(verifier: Any, *episodes: Episode) -> list[float]:
    parts = Rubric(Part(number), Part(verifier)).group_parts
    return [judged.reward for judged in asyncio.run(judge_group(parts, episodes))]


def test_only_sampled_tokens_are_counted() -> None:
    assert sampled_tokens(episode(3, 4)) == 7


def test_the_overlong_penalty_is_dapos() -> None:
    # L = 100, c = 20: 0 up to 80, then linear, -1 from 100 on.
    lengths = [0, 79, 80, 81, 85, 90, 100, 101, 5_000]
    found = added(overlong_penalty(100, 20), *(episode(n) for n in lengths))
    assert found == pytest.approx([0, 0, 0, -0.05, -0.25, -0.5, -1, -1, -1])
    assert added(overlong_penalty(100, 20), episode(50, 40)) == pytest.approx([-0.5])


def test_the_length_reward_is_kimis() -> None:
    found = added(
        length_reward(),
        episode(10),
        episode(20),
        episode(30, value=0.0),
        episode(10, value=0.0),
        episode(20, value=0.9),
        episode(50),
    )
    assert found == pytest.approx([0.5, 0.25, 0.0, 0.0, 0.0, -0.5])
    assert added(length_reward(), episode(50, value=0.0), episode(10)) == [-0.5, 0.5]
    assert added(length_reward(correct_at=0.9), episode(5, value=0.9), episode(9)) == [0.5, -0.5]


def test_equal_lengths_and_single_episodes_get_no_length_reward() -> None:
    assert added(length_reward(), episode(7), episode(7, value=0.0)) == [0.0, 0.0]
    assert added(length_reward(), episode(7)) == [0.0]


def test_the_cost_of_tool_calls_is_otcs_and_only_right_answers_are_paid() -> None:
    found = added(
        tool_call_cost(2),
        episode(1),
        episode(1, calls=1),
        episode(1, 1, calls=2),
        episode(1, value=0.0),
        episode(1, calls=1, value=0.5),
    )
    # cos(0), cos(pi / 4), cos(4 pi / 10)
    assert found == pytest.approx([1.0, 0.7071067811865476, 0.30901699437494745, 0.0, 0.0])


@pytest.mark.parametrize(
    ("make", "problem"),
    [
        (lambda: repetition_penalty(0), "ngram must be at least 1, got 0"),
        (lambda: language_consistency("klingon"), 'no script "klingon": there are arabic, '),
        (lambda: overlong_penalty(10, 11), "buffer_tokens must be from 1 to max_tokens"),
        (lambda: overlong_penalty(10, 0), "buffer_tokens must be from 1 to max_tokens"),
        (lambda: length_reward(correct_at=0), "correct_at must be above 0 and at most 1, got 0"),
        (lambda: tool_call_cost(0), "smoothing must be positive, got 0"),
    ],
)
def test_what_makes_no_sense_is_refused(make: Callable[[], Any], problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        make()
