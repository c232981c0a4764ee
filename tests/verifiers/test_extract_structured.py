from palestra.verifiers.extract_structured import json_field, last_code_block


def test_the_last_code_block_is_found_by_language() -> None:
    reply = "```python\na = 1\n```\ntext\n```json\n{}\n```\n"
    assert last_code_block(reply) == "{}"
    assert last_code_block(reply, "python") == "a = 1"
    assert last_code_block(reply, "rust") is None


def test_an_open_code_block_is_none() -> None:
    assert last_code_block("```python\na = 1") is None


def test_the_field_of_the_last_object_is_found() -> None:
    assert json_field('{"answer": 1} and {"answer": {"x": [2]}} done', "answer") == {"x": [2]}
    assert json_field('{"other": 1}', "answer") is None
    assert json_field('{"answer": 1', "answer") is None


def test_many_open_braces_are_given_up() -> None:
    assert json_field("{" * 1_000_000, "answer") is None
