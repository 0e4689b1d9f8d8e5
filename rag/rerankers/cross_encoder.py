"""A cross-encoder on this machine: any that sentence-transformers can load, on the CPU or a GPU."""

from __future__ import annotations

import json
import math
import threading
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from rag import models
from rag.errors import ConfigError, ModelUnavailable

_ADVICE = "set rerank.model to a hub id such as cross-encoder/ms-marco-MiniLM-L6-v2, or to a folder"
_SCORING = ("ForSequenceClassification", "ForCausalLM")


class CrossEncoderReranker:
    """Scores with a model's folder or hub id. The weights load at the first question."""

    def __init__(
        self,
        *,
        model: str,
        models_dir: Path,
        device: str = "auto",
        batch_size: int = 32,
        say: Callable[[str], None] = lambda _: None,
        **_: Any,
    ) -> None:
        """Raises ModelUnavailable, ConfigError. `say` gets a line before weights are fetched."""
        if not model:
            raise ConfigError("rerank.model is not set", _ADVICE)
        try:
            self._folder = models.resolve(model, models_dir, say)
        except ModelUnavailable as error:
            raise ModelUnavailable(error.message, _ADVICE) from error
        if not _is_cross_encoder(self._folder):
            raise ModelUnavailable(f"{model} is no cross-encoder", _ADVICE)
        self.model = model
        self._device = device
        self._batch_size = batch_size
        self._loading = threading.Lock()

    def scores(self, question: str, texts: Sequence[str]) -> list[float]:
        """The model's logits, in the order of the texts: a sigmoid would make the best ones equal.

        A pair that the model does not read whole is cut at the end of the passage; of a question
        over half of what it reads, the end is cut too.
        """
        if not texts:
            return []
        with self._loading:
            model = self._loaded
        import torch

        try:
            # The library cuts the longer one of a pair.
            scores = model.predict(
                [(question, text) for text in texts],
                batch_size=self._batch_size,
                show_progress_bar=False,
                activation_fn=torch.nn.Identity(),
            )
        except (RuntimeError, IndexError) as error:  # such as no memory on the GPU
            raise self._failure("failed", error) from error
        found = [float(score) for score in scores]
        if not all(map(math.isfinite, found)):
            raise ModelUnavailable(
                f"{self.model} gave a score that is no number", "fetch the model again"
            )
        return found

    @cached_property
    def _loaded(self) -> Any:
        from safetensors import SafetensorError
        from sentence_transformers import CrossEncoder
        from transformers.utils import logging as transformers_logging

        transformers_logging.disable_progress_bar()
        transformers_logging.set_verbosity_error()
        device = None if self._device == "auto" else self._device
        try:
            model = CrossEncoder(str(self._folder), device=device, local_files_only=True)
        except (OSError, ValueError, RuntimeError, SafetensorError) as error:
            raise self._failure("cannot be loaded", error) from error
        if model.num_labels != 1:
            raise ModelUnavailable(
                f"{self.model} gives {model.num_labels} scores for a passage, not one", _ADVICE
            )
        return model

    def _failure(self, what: str, error: Exception) -> ModelUnavailable:
        reason = " ".join(str(error).split())[:200]
        return ModelUnavailable(
            f"{self.model} {what} on device {self._device} ({reason})",
            "check rerank.model and rerank.device",
        )


def _is_cross_encoder(folder: Path) -> bool:
    """Whether the weights can score. Where they cannot, the library would add a head at random."""
    names = _json(folder / "config.json").get("architectures") or []
    made_as = _json(folder / "config_sentence_transformers.json").get("model_type")
    return made_as == "CrossEncoder" or any(name.endswith(_SCORING) for name in names)


def _json(path: Path) -> dict[str, Any]:
    try:
        values: dict[str, Any] = json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise ModelUnavailable(f"{path} is not JSON", "fetch the model again") from error
    return values
