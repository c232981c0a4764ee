import asyncio

import pytest

from palestra.rollout.engine_options import EngineOptions, open_engine


def test_arguments_for_a_server_that_runs_already_are_refused() -> None:
    options = EngineOptions(
        kind="vllm",
        model="nowhere",
        context_length=64,
        urls=("http://host:1",),
        extra_args=("--block-size", "16"),
    )
    with pytest.raises(ValueError, match="start http://host:1 with --block-size 16 instead"):
        asyncio.run(open_engine(options))
