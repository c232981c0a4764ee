import random

from palestra.rollout.prefix_index import BLOCK, PrefixIndex, common_length


def test_the_longest_beginning_is_found_as_by_comparing_with_every_text() -> None:
    draw = random.Random(0)
    index = PrefixIndex()
    texts: dict[int, tuple[int, ...]] = {}
    for step in range(2000):
        # Few tokens and few roots, so that texts often begin alike, for more than a block or less.
        root = random.Random(draw.randrange(3))
        shared = [root.randrange(9) for _ in range(draw.randrange(60))]
        text = tuple(shared + [draw.randrange(9) for _ in range(draw.randrange(20))])
        found = index.find(text)
        best = max((common_length(held, text) for held in texts.values()), default=0)
        if best < BLOCK:
            assert found is None
        else:
            assert found is not None
            slot, length = found
            assert length == best == common_length(texts[slot], text)
        slot = draw.randrange(12)
        if step % 5 == 0:
            index.drop(slot)
            texts.pop(slot, None)
        else:
            index.put(slot, text)
            texts[slot] = text


def test_less_than_a_block_in_common_is_not_worth_a_copy() -> None:
    index = PrefixIndex()
    index.put(0, tuple(range(BLOCK - 1)))
    assert index.find(tuple(range(100))) is None
    index.put(1, tuple(range(BLOCK)))
    assert index.find(tuple(range(100))) == (1, BLOCK)
    assert index.length(1) == BLOCK


def test_nothing_is_found_once_the_weights_have_changed() -> None:
    index = PrefixIndex()
    index.put(0, tuple(range(50)))
    index.clear()
    assert index.find(tuple(range(50))) is None
    assert index.length(0) == 0
