import re
from pathlib import Path

import pytest

from palestra.trainer.config import RLConfig, SFTConfig, load_config


def write(folder: Path, text: str) -> Path:
    path = folder / "rl.toml"
    path.write_text(text)
    return path


GOOD = 'model = "m"\nout = "o"\nenv = "palestra/Arithmetic-v0"\n'


def test_a_file_and_overrides_make_a_config(tmp_path: Path) -> None:
    path = write(tmp_path, GOOD + "steps = 7\n[env_args]\nmax_turns = 3\n")
    config = load_config(RLConfig, path, ["steps=9", "env=acme/Shop-v1", "--learning-rate=1e-4"])
    assert (config.steps, config.env, config.learning_rate) == (9, "acme/Shop-v1", 1e-4)
    assert config.env_args == {"max_turns": 3}


@pytest.mark.parametrize(
    ("text", "overrides", "said"),
    [
        (GOOD + "group_sise = 4", [], 'unknown key "group_sise"; did you mean group_size?'),
        (GOOD + "group_size = 1", [], '"group_size": input should be greater than or equal to 2'),
        (GOOD + "group_size = 'x'", [], '"group_size": input should be a valid integer'),
        (GOOD, ["learning_rate=-1"], '"learning_rate": input should be greater than 0, got -1'),
        (GOOD, ["steps"], "overrides are written key=value, got 'steps'"),
        ('model = "m"\nout = "o"', [], '"env" is missing (environment id'),
        ("model = ", [], "is not valid TOML"),
    ],
)
def test_a_wrong_config_is_one_line_that_names_the_remedy(
    tmp_path: Path, text: str, overrides: list[str], said: str
) -> None:
    with pytest.raises(ValueError, match=re.escape(said)) as error:
        load_config(RLConfig, write(tmp_path, text), overrides)
    assert str(tmp_path / "rl.toml") in str(error.value) or "overrides" in said
    assert "\n" not in str(error.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no configuration file .*nowhere\.toml"):
        load_config(SFTConfig, tmp_path / "nowhere.toml")
