"""Write demonstrations of palestra/Arithmetic-v0's oracle, for sft.toml: demonstrations.jsonl."""

import asyncio
from pathlib import Path

from palestra import envs
from palestra.envs.arithmetic import ArithmeticEnv, arithmetic_tasks
from palestra.rollout import OraclePolicy, rollout
from palestra.trainer.demonstrations import write_demonstrations

episodes = rollout(
    lambda: envs.make("palestra/Arithmetic-v0"),
    arithmetic_tasks("train")[:3000],
    OraclePolicy(ArithmeticEnv.solve),
    max_concurrent=1,  # in the order of the tasks
)
count = asyncio.run(write_demonstrations(Path("demonstrations.jsonl"), episodes))
print(f"wrote {count} demonstrations")
