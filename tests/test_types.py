import json

import pytest

from palestra.types import CallShape, Episode, Outcome, Sampling, Structure, Task, Turn, VersionSpan

CALL = CallShape(prefix="<call>", json_schema={"type": "object"}, suffix="</call>")


def test_a_structure_is_one_thing() -> None:
    with pytest.raises(ValueError, match="one of json_schema, choice and regex, got none"):
        Structure()
    with pytest.raises(ValueError, match="got choice and regex"):
        Structure(choice=("yes",), regex="y")
    with pytest.raises(ValueError, match="a call needs a json_schema"):
        Structure(regex="y", call=CALL)


@pytest.mark.parametrize(
    "structure",
    [
        Structure(choice=("yes", "no")),
        Structure(json_schema={"type": "object"}),
        Structure(json_schema={"type": "object"}, call=CALL),
        None,
    ],
)
def test_an_episode_with_structured_replies_is_read_back(structure: Structure | None) -> None:
    turn = Turn(message={"role": "assistant"}, sampling=Sampling(structure=structure))
    episode = Episode(
        id="e",
        env_id="test",
        task=Task(id="t", messages=()),
        prompt=(),
        turns=(turn,),
        outcome=Outcome.SCORED,
        stop_reason="answer",
    )
    assert Episode.from_json(episode.to_json()) == episode


def test_a_conversation_of_turns_is_written_once_and_read_back_equal() -> None:
    first = Turn(message={}, prompt_ids=(1, 2), completion_ids=(3,), logprobs=(-1.0,))
    second = Turn(message={}, parent=0, prompt_ids=(1, 2, 3, 4), completion_ids=(5,))
    branch = Turn(message={}, parent=0, prompt_ids=(1, 2, 3, 6), completion_ids=(7,))
    afresh = Turn(message={}, prompt_ids=(1, 9), completion_ids=(8,))
    foreign = Turn(message={}, parent=1, prompt_ids=(9, 9), completion_ids=(8,))
    episode = Episode(
        id="e",
        env_id="test",
        task=Task(id="t", messages=()),
        prompt=(),
        turns=(first, second, branch, afresh, foreign),
        outcome=Outcome.SCORED,
        stop_reason="answer",
    )
    assert Episode.from_json(episode.to_json()) == episode
    written = [
        turn.get("prompt_ids_after_parent") for turn in json.loads(episode.to_json())["turns"]
    ]
    assert written == [None, [4], [6], None, None]


def test_what_became_of_older_keys_is_written_and_episodes_without_it_are_read() -> None:
    old = VersionSpan(version=1, start=0, end=2)
    new = VersionSpan(version=2, start=2, end=3, kv_after_update="keep")
    episode = Episode(
        id="e",
        env_id="test",
        task=Task(id="t", messages=()),
        prompt=(),
        turns=(Turn(message={}, completion_ids=(1, 2, 3), version_spans=(old, new)),),
        outcome=Outcome.SCORED,
        stop_reason="answer",
    )
    line = episode.to_json()
    assert Episode.from_json(line) == episode
    without = line.replace(',"kv_after_update":null', "").replace(',"kv_after_update":"keep"', "")
    assert "kv_after_update" not in without
    spans = Episode.from_json(without).turns[0].version_spans
    assert [span.kv_after_update for span in spans] == [None, None]
