import pytest

from palestra.types import Episode, Outcome, Sampling, Structure, Task, Turn


def test_a_structure_is_one_thing() -> None:
    with pytest.raises(ValueError, match="one of json_schema, choice and regex, got none"):
        Structure()
    with pytest.raises(ValueError, match="got choice and regex"):
        Structure(choice=("yes",), regex="y")


@pytest.mark.parametrize(
    "structure",
    [Structure(choice=("yes", "no")), Structure(json_schema={"type": "object"}), None],
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
