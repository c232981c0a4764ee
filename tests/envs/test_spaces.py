"""Chat and Reply behave as Gymnasium spaces, in shared memory too."""

from __future__ import annotations

import copy
import json
import multiprocessing
import pickle
from typing import Any

import gymnasium
import pytest
from gymnasium.spaces import Tuple
from gymnasium.vector.utils import (
    batch_differing_spaces,
    batch_space,
    concatenate,
    create_empty_array,
    create_shared_memory,
    iterate,
    read_from_shared_memory,
    write_to_shared_memory,
)
from hypothesis import given
from hypothesis import strategies as st

from palestra.envs import Chat, Reply

EMPTY: Any = ()
HELLO: Any = ({"role": "user", "content": "hello"},)


def test_samples_lie_in_their_space() -> None:
    for space in (Chat(seed=0), Reply(seed=0)):
        assert all(space.sample() in space for _ in range(50))


def test_the_same_seed_samples_the_same() -> None:
    for kind in (Chat, Reply):
        assert [kind(seed=3).sample() for _ in range(5)] == [kind(seed=3).sample()] * 5
        space = kind(seed=3)
        assert len({repr(space.sample()) for _ in range(20)}) > 10


@pytest.mark.parametrize(
    "chat",
    [
        (),
        HELLO,
        ({"role": "assistant", "content": None, "tool_calls": []},),
        ({"role": "user", "content": [{"type": "text", "text": "hello"}]},),
    ],
)
def test_chat_contains_tuples_of_messages(chat: Any) -> None:
    assert chat in Chat()


@pytest.mark.parametrize(
    "chat",
    [
        "hello",
        [*HELLO],
        ("hello",),
        ({"content": "hello"},),
        ({"role": "nobody", "content": "hello"},),
        ({"role": "user", "content": 3},),
    ],
)
def test_chat_contains_nothing_else(chat: Any) -> None:
    assert chat not in Chat()


def test_reply_contains_text_and_assistant_messages_only() -> None:
    assert "42" in Reply()
    assert {"role": "assistant", "content": "42"} in Reply()
    assert {"role": "user", "content": "42"} not in Reply()
    assert {"role": "assistant", "content": "42", "tool_calls": ["add"]} not in Reply()
    assert 42 not in Reply()


def test_chats_survive_json() -> None:
    space = Chat(seed=1)
    chats = [space.sample() for _ in range(5)]
    assert space.from_jsonable(json.loads(json.dumps(space.to_jsonable(chats)))) == chats


def test_equality_is_by_size() -> None:
    assert Chat() == Chat()
    assert Chat() != Chat(max_bytes=10)
    assert Chat() != Reply()
    assert Reply() == pickle.loads(pickle.dumps(Reply()))
    assert Chat(max_bytes=7) == pickle.loads(pickle.dumps(Chat(max_bytes=7)))


def test_batches_are_tuples_that_iterate_by_environment() -> None:
    batched = batch_space(Reply(seed=0), 3)
    assert isinstance(batched, Tuple)
    assert list(iterate(batched, ("one", "two", "three"))) == ["one", "two", "three"]
    empty: Any = create_empty_array(Chat(), n=2)
    assert concatenate(Chat(), [HELLO, ()], empty) == (HELLO, ())
    assert len(set(batch_space(Reply(seed=0), 8).sample())) > 4  # seeded differently


def test_batches_iterate_inside_composite_spaces() -> None:
    space = gymnasium.spaces.Dict({"say": Reply(), "move": gymnasium.spaces.Discrete(2)})
    actions = list(iterate(batch_space(space, 2), {"say": ("one", "two"), "move": [0, 1]}))
    assert actions == [{"say": "one", "move": 0}, {"say": "two", "move": 1}]


def test_spaces_of_equal_size_can_be_batched_as_different_ones() -> None:
    assert batch_differing_spaces([Chat(), Chat()]) == Tuple([Chat(), Chat()])


def shared(max_bytes: int = 1000, n: int = 2) -> tuple[Chat, Any, Any]:
    space = Chat(max_bytes=max_bytes)
    context: Any = multiprocessing.get_context()
    memory = create_shared_memory(space, n=n, ctx=context)
    return space, memory, read_from_shared_memory(space, memory, n=n)


def test_a_view_read_once_shows_what_is_written_later() -> None:
    space, memory, view = shared()
    assert copy.deepcopy(view) == ((), ())
    write_to_shared_memory(space, 1, HELLO, memory)
    first = copy.deepcopy(view)
    write_to_shared_memory(space, 1, EMPTY, memory)
    write_to_shared_memory(space, 0, HELLO * 2, memory)
    assert first == ((), HELLO)  # a copy keeps its value
    assert copy.deepcopy(view) == copy.copy(view) == (HELLO * 2, ())
    assert view == (HELLO * 2, ())
    assert list(view) == [view[0], view[1]] == [HELLO * 2, ()]
    assert view[-1] == ()
    assert view[:1] == (HELLO * 2,)
    with pytest.raises(IndexError):
        view[2]


def test_an_observation_that_does_not_fit_is_refused_with_the_remedy() -> None:
    space, memory, _ = shared(max_bytes=100)
    long: Any = ({"role": "user", "content": "x" * 100},)
    with pytest.raises(
        ValueError,
        match=r"an observation of \d{3} bytes does not fit into Chat\(max_bytes=100\); "
        r"give the environment observation_space = Chat\(max_bytes=\d+\)",
    ):
        write_to_shared_memory(space, 0, long, memory)


def test_a_chat_of_exactly_the_size_fits_and_spares_its_neighbours() -> None:
    chat: Any = ({"role": "user", "content": "x" * 50},)
    size = len(pickle.dumps(chat, protocol=pickle.HIGHEST_PROTOCOL))
    space, memory, view = shared(max_bytes=size, n=3)
    for index in (1, 0, 2):
        write_to_shared_memory(space, index, chat, memory)
    write_to_shared_memory(space, 1, EMPTY, memory)
    assert copy.deepcopy(view) == (chat, (), chat)


def test_sizes_must_be_positive() -> None:
    with pytest.raises(ValueError, match="max_bytes must be positive, got 0"):
        Chat(max_bytes=0)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)
messages = st.fixed_dictionaries(
    {"role": st.just("user"), "content": st.text() | st.just("\ud800 and \0")},
    optional={"extra": json_values, "pair": st.tuples(st.integers(), st.text())},
)


@given(st.lists(messages, max_size=3).map(tuple))
def test_any_chat_comes_back_from_shared_memory_as_it_was(chat: Any) -> None:
    space, memory, view = shared(max_bytes=100_000, n=1)
    write_to_shared_memory(space, 0, chat, memory)
    assert copy.deepcopy(view) == (chat,)
