from dataclasses import replace

import pytest
import torch

from palestra.trainer.batch import Row, micro_batches, pack, rows_of
from palestra.types import Episode, Outcome, Sampling, Structure, Task, Turn


def turn(prompt: list[int], completion: list[int], parent: int | None = None) -> Turn:
    return Turn(
        message={"role": "assistant", "content": ""},
        parent=parent,
        prompt_ids=tuple(prompt),
        completion_ids=tuple(completion),
        logprobs=tuple(-float(token) for token in completion),
        sampling=Sampling(temperature=0.7),
    )


def episode(*turns: Turn) -> Episode:
    return Episode(
        id="e",
        env_id="test",
        task=Task(id="t", messages=()),
        prompt=(),
        turns=turns,
        outcome=Outcome.SCORED,
        stop_reason="answer",
    )


def row(length: int) -> Row:
    return Row(
        token_ids=tuple(range(length)),
        loss_mask=(False,) * (length - 1) + (True,),
        sampled_logprobs=(-1.0,),
        advantages=(0.5,),
        temperatures=(1.0,),
    )


def test_a_conversation_is_one_row_that_trains_only_what_was_sampled() -> None:
    [only] = rows_of(
        episode(turn([1, 2], [3, 4]), turn([1, 2, 3, 4, 8, 9], [5], parent=0)), advantage=2.0
    )
    assert only.token_ids == (1, 2, 3, 4, 8, 9, 5)
    assert only.loss_mask == (False, False, True, True, False, False, True)
    assert only.sampled_logprobs == (-3.0, -4.0, -5.0)
    assert only.advantages == (2.0, 2.0, 2.0)
    assert only.temperatures == (0.7, 0.7, 0.7)


def test_a_turn_shared_by_two_branches_trains_once() -> None:
    first, second = rows_of(
        episode(
            turn([1], [2]),
            turn([1, 2, 7], [3], parent=0),
            turn([1, 2, 8], [4], parent=0),
        ),
        advantage=1.0,
    )
    assert (first.token_ids, first.loss_mask) == ((1, 2, 7, 3), (False, True, False, True))
    assert (second.token_ids, second.loss_mask) == ((1, 2, 8, 4), (False, False, False, True))


def test_a_rewritten_history_makes_a_row_of_its_own() -> None:
    rows = rows_of(episode(turn([1], [2, 3]), turn([1, 3, 7], [4], parent=None)), advantage=1.0)
    assert [r.token_ids for r in rows] == [(1, 2, 3), (1, 3, 7, 4)]
    assert [sum(r.loss_mask) for r in rows] == [2, 1]


def test_an_episode_without_token_ids_cannot_be_trained_on() -> None:
    scripted = Turn(message={"role": "assistant", "content": "42"})
    with pytest.raises(ValueError, match="no token ids"):
        rows_of(episode(scripted), advantage=1.0)


def test_what_a_grammar_forced_does_not_train() -> None:
    forced = Sampling(structure=Structure(choice=("yes", "no")))
    free = turn([1, 2, 3, 4], [5], parent=0)
    [only] = rows_of(episode(replace(turn([1], [2, 3]), sampling=forced), free), advantage=1.0)
    assert only.loss_mask == (False, False, False, False, True)
    assert only.sampled_logprobs == (-5.0,)


def test_packing_lays_rows_end_to_end_and_points_at_the_trained_tokens() -> None:
    batch = pack([row(3), row(2)])
    assert batch.token_ids_T.tolist() == [0, 1, 2, 0, 1]
    assert batch.targets_S.tolist() == [2, 4]
    assert batch.target_ids_S.tolist() == [2, 1]
    assert batch.segments().positions_T.tolist() == [0, 1, 2, 0, 1]
    assert torch.equal(batch.old_logprobs_S, batch.sampled_logprobs_S)


def test_micro_batches_keep_every_row_and_the_bound() -> None:
    rows = [row(length) for length in (9, 2, 5, 3, 30)]
    chunks = list(micro_batches(rows, max_tokens=10))
    assert sorted(len(r.token_ids) for chunk in chunks for r in chunk) == [2, 3, 5, 9, 30]
    sizes = [sum(len(r.token_ids) for r in chunk) for chunk in chunks]
    assert sizes == [10, 9, 30]  # the row that is too long alone is neither cut nor dropped


def test_nothing_cannot_be_packed() -> None:
    with pytest.raises(ValueError, match="no rows"):
        pack([])
