"""Inside a vLLM process: weights loaded from a folder into the running model, wholly or not at all.

vLLM imports this file for `--worker-extension-cls`; that registers the weight-transfer backend
"disk". Standard library, torch and vLLM only (which is typed in its own environment alone).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from vllm.config import set_current_vllm_config
from vllm.distributed.weight_transfer import base
from vllm.distributed.weight_transfer.factory import WeightTransferEngineFactory
from vllm.model_executor.layers.vocab_parallel_embedding import (
    ParallelLMHead,
    VocabParallelEmbedding,
)
from vllm.model_executor.model_loader.reload import (
    finalize_layerwise_reload,
    initialize_layerwise_reload,
)

from palestra.rollout.safetensors_header import (
    Tensors,
    first_difference,
    list_files,
    read_folder,
)

_log = logging.getLogger(__name__)

BACKEND = "disk"


class FolderLoader:
    """Loads folders of safetensors into the model of one worker.

    A folder that does not fit is refused before anything is touched; where loading fails half-way,
    the folder that was loaded last is loaded again.
    """

    def __init__(self, model: Any, model_config: Any) -> None:
        self._model = model
        self._model_config = model_config
        self._loaded = _local_folder(model_config)
        self._expected: Tensors | None = None
        if self._loaded is not None:
            try:
                self._expected = read_folder(self._loaded)
            except ValueError as error:  # other formats: they load, but cannot be compared with
                _log.warning("the shapes of new weights cannot be checked: %s", error)

    def refusal(self, folder: str) -> str | None:
        """Why `folder` cannot be loaded, in one line; None when it can."""
        try:
            found = read_folder(folder)
        except (ValueError, OSError) as error:
            return str(error)
        if self._expected is None:
            return None
        difference = first_difference(self._expected, found, self._optional_names())
        return (
            None if difference is None else f"{folder} does not fit the served model: {difference}"
        )

    def start(self) -> None:
        """Set the layers up to receive a checkpoint's tensors."""
        initialize_layerwise_reload(self._model)

    def receive(self, folder: str) -> None:
        """Load every tensor of `folder`, after `start` and before `finish`.

        Raises:
            ValueError: it cannot be loaded; the model is as it was.
            RuntimeError: it cannot be loaded, nor what was loaded before.
        """
        self._raise(self.refusal(folder))
        try:
            self._model.load_weights(_tensors(folder))
        except Exception as error:
            self._restore(folder, error)
            raise ValueError(_one_line(error)) from error
        self._loaded = folder

    def receive_tensors(self, tensors: Sequence[tuple[str, torch.Tensor]]) -> None:
        """Load a whole checkpoint from memory, as `receive` does.

        Should a later update fail half-way, these weights are not there to be put back.
        """
        found = {name: ("", tuple(tensor.shape)) for name, tensor in tensors}
        if self._expected is not None:
            difference = first_difference(self._expected, found, self._optional_names())
            if difference is not None:
                self._raise(f"the tensors do not fit the served model: {difference}")
        try:
            self._model.load_weights(iter(tensors))
        except Exception as error:
            self._restore("the tensors", error)
            raise ValueError(_one_line(error)) from error
        self._loaded = None

    def finish(self) -> None:
        """Hand the loaded tensors to the kernels."""
        finalize_layerwise_reload(self._model, self._model_config)
        self._renew_tied_head()

    def head_is_current(self) -> bool:
        """Whether the output head computes with the embedding that it is tied to."""
        for head, embedding in self._tied_heads():
            weight = embedding.weight
            state_1E = torch.linspace(-1, 1, weight.shape[1], dtype=weight.dtype)[None]
            state_1E = state_1E.to(weight.device)
            served_1V = head.quant_method.apply(head, state_1E)
            expected_1V = torch.nn.functional.linear(state_1E, weight)
            error = (served_1V.float() - expected_1V.float()).abs().max()
            if not error <= 0.01 * expected_1V.float().abs().max():
                return False
        return True

    def _raise(self, refusal: str | None) -> None:
        """Raise ValueError for a reason; the layers, to which nothing was given, are as before."""
        if refusal is not None:
            finalize_layerwise_reload(self._model, self._model_config)
            raise ValueError(refusal)

    def _restore(self, folder: str, error: Exception) -> None:
        finalize_layerwise_reload(self._model, self._model_config)
        if self._loaded is None:
            raise RuntimeError(
                f"{folder} was loaded half-way and the weights before it are not in a folder: "
                f"restart the server ({_one_line(error)})"
            ) from error
        try:
            initialize_layerwise_reload(self._model)
            self._model.load_weights(_tensors(self._loaded))
            self.finish()
        except Exception as again:
            raise RuntimeError(
                f"{folder} was loaded half-way and {self._loaded}, served before it, cannot be "
                f"loaded again: restart the server ({_one_line(again)})"
            ) from error

    def _renew_tied_head(self) -> None:
        # On a CPU the head computes with a packed copy of the embedding, made when the server
        # started; vLLM's layerwise reload (0.32) leaves it, and packs another for the embedding,
        # which never uses it. To pack a third would take a fifth of a reload.
        for head, embedding in self._tied_heads():
            head.weight = embedding.weight
            if hasattr(embedding, "cpu_linear"):
                head.cpu_linear = embedding.cpu_linear
            else:
                head.quant_method.process_weights_after_loading(head)

    def _optional_names(self) -> frozenset[str]:
        return frozenset({"lm_head.weight"} if self._is_tied() else ())

    def _is_tied(self) -> bool:
        config = self._model_config.hf_text_config
        return bool(getattr(config, "tie_word_embeddings", False))

    def _tied_heads(self) -> Iterator[tuple[Any, Any]]:
        """Output heads that share the embedding's weight, each with the embedding."""
        if not self._is_tied():
            return
        modules = list(self._model.modules())
        embeddings = [
            module
            for module in modules
            if isinstance(module, VocabParallelEmbedding) and not isinstance(module, ParallelLMHead)
        ]
        for module in modules:
            if isinstance(module, ParallelLMHead):
                for embedding in embeddings:
                    if embedding.weight.shape == module.weight.shape:
                        yield module, embedding
                        break


@dataclass
class DiskInitInfo(base.WeightTransferInitInfo):  # type: ignore[misc]
    """Nothing to agree on."""


@dataclass
class DiskUpdateInfo(base.WeightTransferUpdateInfo):  # type: ignore[misc]
    """The folder to load, as the server sees it."""

    path: str


class DiskWeightTransferEngine(base.WeightTransferEngine):  # type: ignore[misc]
    """vLLM's weight-transfer protocol (start, update, finish) with a folder as the source."""

    init_info_cls = DiskInitInfo
    update_info_cls = DiskUpdateInfo

    def __init__(
        self, config: Any, vllm_config: Any, device: torch.device, model: torch.nn.Module
    ) -> None:
        super().__init__(config, vllm_config, device, model)
        self.loader = FolderLoader(model, vllm_config.model_config)

    def init_transfer_engine(self, init_info: DiskInitInfo) -> None:
        """Nothing to do."""

    def start_weight_update(self) -> None:
        self.loader.start()

    def update_weights(self, update_info: dict[str, Any]) -> None:
        self.receive_weights(self.parse_update_info(update_info))

    def receive_weights(self, update_info: DiskUpdateInfo) -> None:
        self.loader.receive(update_info.path)

    def finish_weight_update(self) -> None:
        self.loader.finish()

    def shutdown(self) -> None:
        """Nothing to do."""


WeightTransferEngineFactory.register_engine(BACKEND, DiskWeightTransferEngine)


class WorkerExtension:
    """What palestra adds to vLLM's worker; called through `/collective_rpc`.

    Answers are plain data. What the caller did wrong comes back as a line, never as an exception.
    """

    vllm_config: Any
    model_config: Any
    model_runner: Any
    weight_transfer_engine: Any
    # Methods of the worker that this class becomes a part of; vLLM forbids to define them here.
    if TYPE_CHECKING:
        list_loras: Any
        add_lora: Any
        pin_lora: Any

    def palestra_describe(self) -> dict[str, Any]:
        """What an update depends on; `block_size` is the prefix cache's, in tokens."""
        config = self.vllm_config.weight_transfer_config
        return {
            "backend": None if config is None else config.backend,
            "device": self.vllm_config.device_config.device_type,
            "block_size": self.vllm_config.cache_config.block_size,
            "lora": self.vllm_config.lora_config is not None,
        }

    def palestra_refusal(self, folder: str) -> dict[str, Any]:
        """Why a folder cannot be loaded, or None."""
        return {"refusal": self._palestra_loader().refusal(folder)}

    def palestra_load(self, folder: str) -> dict[str, Any]:
        """Load a folder where the server has no "disk" backend."""
        return self._palestra_change(lambda loader: loader.receive(folder))

    def palestra_load_tensors(self, tensors: Sequence[tuple[str, torch.Tensor]]) -> dict[str, Any]:
        """Load a checkpoint from memory; only where vLLM runs in the caller's process."""
        return self._palestra_change(lambda loader: loader.receive_tensors(tensors))

    def _palestra_change(self, receive: Callable[[FolderLoader], None]) -> dict[str, Any]:
        loader = self._palestra_loader()
        with set_current_vllm_config(self.vllm_config):
            loader.start()
            try:
                receive(loader)
            except ValueError as error:
                return {"refusal": str(error)}
            loader.finish()
        self.model_runner.reset_lora_state()
        return {"refusal": None}

    def palestra_head_is_current(self) -> dict[str, Any]:
        """Whether a tied output head was renewed with its embedding."""
        with set_current_vllm_config(self.vllm_config):
            return {"current": self._palestra_loader().head_is_current()}

    def palestra_adapter_refusal(self, folder: str) -> dict[str, Any]:
        """Why a LoRA adapter's folder cannot be loaded, or None."""
        path = Path(folder)
        if not (path / "adapter_config.json").is_file():
            return {"refusal": f"there is no adapter_config.json in {folder}"}
        try:
            read_folder(folder)
        except (ValueError, OSError) as error:
            return {"refusal": str(error)}
        return {"refusal": None}

    def palestra_adapter_ids(self) -> dict[str, Any]:
        """The numbers of the LoRA adapters that are loaded."""
        return {"ids": sorted(self.list_loras())}

    def palestra_exchange_adapter(self, adapter_id: int, folder: str) -> dict[str, Any]:
        """Load an adapter's folder in the place of one that is loaded.

        Requests go on naming the one they knew. vLLM's own exchange (`load_inplace`) makes each
        request carry its folder and load it again at every step: those of before and after the
        exchange would undo each other's.
        """
        from vllm.lora.request import LoRARequest

        request = LoRARequest("adapter", adapter_id, folder, load_inplace=True)
        try:
            self.add_lora(request)
            # Out of the cache it would be loaded again from the folder that it had at first.
            self.pin_lora(adapter_id)
        except Exception as error:
            return {"refusal": _one_line(error)}
        return {"refusal": None}

    def _palestra_loader(self) -> FolderLoader:
        if isinstance(self.weight_transfer_engine, DiskWeightTransferEngine):
            return self.weight_transfer_engine.loader
        if "_palestra_folder_loader" not in self.__dict__:
            loader = FolderLoader(self.model_runner.get_model(), self.vllm_config.model_config)
            self.__dict__["_palestra_folder_loader"] = loader
        found: FolderLoader = self.__dict__["_palestra_folder_loader"]
        return found


def _tensors(folder: str) -> Iterator[tuple[str, torch.Tensor]]:
    from safetensors import safe_open

    for file in list_files(folder):
        with safe_open(file, framework="pt") as opened:
            for name in opened.keys():  # noqa: SIM118 - it is no mapping
                yield name, opened.get_tensor(name)


def _local_folder(model_config: Any) -> str | None:
    """Where the served weights are on this machine; None where they are not in a folder."""
    name = str(model_config.model)
    if Path(name).is_dir():
        return name
    try:
        from huggingface_hub import snapshot_download

        return str(snapshot_download(name, revision=model_config.revision, local_files_only=True))
    except Exception as error:
        _log.warning("the weights of %s are not in a local folder: %s", name, error)
        return None


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__
