"""Any sentence-transformers model, on the CPU or a GPU.

Two engines run the same weights: torch, and on a CPU OpenVINO if it is installed. OpenVINO runs a
graph that was converted once and is kept beside the models: 1.4 times faster than torch, and a
question is answered without the seconds that importing torch takes.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rag import models
from rag.embedders.encoder import Encoder
from rag.errors import ConfigError, ContextTooLong, ModelError
from rag.types import Fingerprint

if TYPE_CHECKING:
    from rag.types import Vectors

_PRECISIONS = ("auto", "float32", "bfloat16")


class SentenceTransformersEmbedder:
    """Embeds with a model's folder or hub id. The weights load at the first embedding."""

    def __init__(
        self,
        *,
        model: str,
        models_dir: Path,
        device: str = "auto",
        precision: str = "auto",
        backend: str = "auto",
        batch_size: int = 16,
        query_prefix: str | None = None,
        document_prefix: str | None = None,
        say: Callable[[str], None] = lambda _: None,
        **_: Any,
    ) -> None:
        """`precision` auto is bfloat16 where the hardware multiplies it, otherwise float32.

        Prefixes left None are the model's own. Raises ModelUnavailable, ConfigError.
        """
        if precision not in _PRECISIONS:
            raise ConfigError(f"embedder.precision is {precision!r}", f"use {_PRECISIONS}")
        if backend not in ("auto", "torch", "openvino"):
            raise ConfigError(f"embedder.backend is {backend!r}", "use auto, torch or openvino")
        folder = models.resolve(model, models_dir, say)
        self._encoder = Encoder(folder)
        self._name = model.removeprefix("sentence-transformers/")
        own = self._encoder.prefixes(self._name)
        self._query_prefix = own[0] if query_prefix is None else query_prefix
        self._document_prefix = own[1] if document_prefix is None else document_prefix
        self._device = _device() if device == "auto" else device
        self._precision = _precision(self._device) if precision == "auto" else precision
        self._backend = backend
        self._batch_size = batch_size
        self._cache = models_dir
        self._loading = threading.Lock()

    @cached_property
    def fingerprint(self) -> Fingerprint:
        return Fingerprint(
            model=self._name,
            revision=models.weights_sha256(self._encoder.folder),
            dim=self._encoder.dim,
            query_prefix=self._query_prefix,
            document_prefix=self._document_prefix,
            precision=self._precision,
        )

    @property
    def max_tokens(self) -> int:
        return self._encoder.max_tokens

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        return self._encoder.count([self._document_prefix + text for text in texts])

    def legibility(self, text: str) -> float:
        return self._encoder.legibility(text)

    def embed_documents(self, texts: Sequence[str]) -> Vectors:
        return self._embed([self._document_prefix + text for text in texts], cut=False)

    def embed_queries(self, texts: Sequence[str]) -> Vectors:
        return self._embed([self._query_prefix + text for text in texts], cut=True)

    def _embed(self, texts: list[str], *, cut: bool) -> Vectors:
        import numpy as np

        vectors = np.zeros((len(texts), self._encoder.dim), np.float32)
        if not texts:
            return vectors
        if not cut and (longest := max(self._encoder.count(texts))) > self.max_tokens:
            raise ContextTooLong(
                f"a text has {longest} tokens, {self._name} reads {self.max_tokens}",
                "set ingest.chunk_tokens lower",
            )
        batches = self._encoder.batches(texts, self._batch_size)
        for rows, found in self._run(batches):
            vectors[rows] = found
        norms = np.linalg.norm(vectors, axis=1, keepdims=True)
        if not np.isfinite(norms).all() or not norms.all():
            raise ModelError(
                f"{self._name} gave NaN or zero vectors", "try embedder.precision = float32"
            )
        unit: Vectors = vectors / norms
        return unit

    @property
    def _run(self) -> Any:
        with self._loading:
            return self._engine

    @cached_property
    def _engine(self) -> Callable[[Any], Any]:
        """A function from batches (rows, ids, mask) to pairs (rows, vectors)."""
        if self._backend != "torch" and self._device == "cpu" and find_spec("openvino"):
            from rag.embedders import openvino

            revision = self.fingerprint.revision[:16]
            try:
                return openvino.engine(
                    self._encoder.folder, self._cache / f".openvino-{revision}", self._precision
                )
            except openvino.NotConvertible as error:
                if self._backend == "openvino":
                    raise ModelError(
                        f"{self._name} cannot run on OpenVINO ({error})", "use backend torch"
                    ) from error
                logging.getLogger(__name__).info("OpenVINO: %s; using torch", error)
        return _torch_engine(self._encoder.folder, self._device, self._precision)


def _torch_engine(folder: Path, device: str, precision: str) -> Callable[[Any], Any]:
    import torch

    model = load_torch(folder, device, getattr(torch, precision))

    def run(batches: Any) -> Any:
        with torch.inference_mode():
            for rows, ids, mask in batches:
                features = {
                    "input_ids": torch.from_numpy(ids).to(device),
                    "attention_mask": torch.from_numpy(mask).to(device),
                }
                found = model(features)["sentence_embedding"]
                yield rows, found.float().cpu().numpy()

    return run


def load_torch(folder: Path, device: str, dtype: Any, **options: Any) -> Any:
    """The model as a torch module, its progress bars off."""
    from sentence_transformers import SentenceTransformer
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()
    try:
        model = SentenceTransformer(
            str(folder), device=device, model_kwargs={"dtype": dtype, **options}
        )
    except (OSError, ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ModelError(
            f"{folder} cannot be loaded on {device} ({reason})", "check embedder.model and device"
        ) from error
    return model.eval()


def _device() -> str:
    """cuda if a driver is there and torch can use it. Looks for the driver before torch."""
    if Path("/dev/nvidiactl").exists():
        import torch

        if torch.cuda.is_available():
            return "cuda"
    return "cpu"


def _precision(device: str) -> str:
    """bfloat16 where it is faster: on GPUs, and on CPUs with AMX or AVX512-BF16.

    There 1.7 to 2.6 times as fast as float32, at a cosine above 0.999 to it.
    """
    if device.startswith("cuda"):
        return "bfloat16"
    try:
        flags = Path("/proc/cpuinfo").read_text("utf-8").split()
    except OSError:
        return "float32"
    return "bfloat16" if {"amx_bf16", "avx512_bf16"} & set(flags) else "float32"
