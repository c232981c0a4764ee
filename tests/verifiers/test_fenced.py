import pytest

from palestra.verifiers.fenced import last_block


@pytest.mark.parametrize(
    ("text", "block"),
    [
        ("no block", None),
        ("```sql\nselect 1\n```", "select 1"),
        ("```\nselect 1\n```", "select 1"),
        ("```SQL  \nselect 1\n```", "select 1"),
        ("~~~sql\nselect 1\n~~~", "select 1"),
        ("a\n```sql\nselect 1\n```\nb\n```sql\nselect 2\n```\nc", "select 2"),
        ("```sql\nselect 1\n```\n```python\nx\n```", "select 1"),
        ("```sql\nselect 1\n```\nbetter:\n```sql\nselect", None),
        ("```sql\nselect 1\n```\n```python\nx", "select 1"),
        ("```sql\na\n```sql\nb\n```", "a\n```sql\nb"),
        ("```sql\n```", ""),
        ("```", None),
        ("inline ```sql select 1``` no", None),
    ],
)
def test_the_last_whole_block_of_the_language_is_found(text: str, block: str | None) -> None:
    assert last_block(text, ("sql",)) == block


def test_fences_by_the_hundred_thousand_take_linear_time() -> None:
    assert last_block("```x\n" * 200_000, ("sql",)) is None
    assert last_block("```\n" * 200_000, ("sql",)) == ""
