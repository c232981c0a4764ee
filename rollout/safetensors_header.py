"""What a folder of safetensors holds, read from the headers alone: names, types and shapes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

INDEX = "model.safetensors.index.json"
_SINGLE = "model.safetensors"
_MAX_HEADER_BYTES = 100_000_000  # what the safetensors library itself accepts

# Tensor name -> its type as safetensors writes it ("F32", "BF16", ...) and its shape.
Tensors = Mapping[str, tuple[str, tuple[int, ...]]]


def list_files(folder: str | Path) -> list[Path]:
    """The safetensors files that make up the model in `folder`.

    Raises:
        ValueError: there is no such folder, no such file, or one that the index names is missing.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ValueError(f"there is no weight folder {folder}")
    index = folder / INDEX
    if index.is_file():
        try:
            shards = sorted(set(json.loads(index.read_text())["weight_map"].values()))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{index} is not an index of safetensors files: {error!r}") from None
        files = [folder / shard for shard in shards]
    elif (folder / _SINGLE).is_file():
        files = [folder / _SINGLE]
    else:
        files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise ValueError(f"there is no safetensors file in {folder}")
    for file in files:
        if not file.is_file():
            raise ValueError(f"{file} is missing: its index names it")
    return files


def read_folder(folder: str | Path) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Every tensor of the model in `folder`.

    Raises:
        ValueError: a file is missing, cut short or no safetensors file.
    """
    tensors: dict[str, tuple[str, tuple[int, ...]]] = {}
    for file in list_files(folder):
        tensors |= read_file(file)
    return tensors


def read_file(path: Path) -> dict[str, tuple[str, tuple[int, ...]]]:
    """The tensors of one file. Raises ValueError where it is cut short or no safetensors file."""
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > _MAX_HEADER_BYTES:
            raise ValueError(f"{path} is not a safetensors file")
        head = file.read(length)
    if len(head) < length:
        raise ValueError(f"{path} is cut short: {size} bytes of at least {8 + length}")
    try:
        entries = {name: entry for name, entry in json.loads(head).items() if name[:2] != "__"}
        tensors = {
            name: (str(entry["dtype"]), tuple(map(int, entry["shape"])))
            for name, entry in entries.items()
        }
        end = max((int(entry["data_offsets"][1]) for entry in entries.values()), default=0)
    except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise ValueError(f"{path} is not a safetensors file: {error!r}") from None
    if size != 8 + length + end:
        raise ValueError(f"{path} is cut short: {size} bytes of {8 + length + end}")
    return tensors


def first_difference(expected: Tensors, found: Tensors, optional: frozenset[str]) -> str | None:
    """Why `found` does not fit a model of `expected`, in a few words; None where it does.

    Types may differ, they are converted. `optional` names may be missing or extra: a tied output
    head is sometimes written and sometimes not.
    """
    for name, (_, shape) in expected.items():
        if name in found and found[name][1] != shape:
            return f"{name} has shape {list(found[name][1])}, the served model's is {list(shape)}"
    for names, what in (
        (expected.keys() - found.keys() - optional, "lacks"),
        (found.keys() - expected.keys() - optional, "has an unknown tensor,"),
    ):
        if names:
            more = f" and {len(names) - 1} more" if len(names) > 1 else ""
            return f"it {what} {min(names)}{more}"
    return None
