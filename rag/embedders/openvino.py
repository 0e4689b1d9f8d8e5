"""A sentence-transformers model as an OpenVINO graph: the fast engine for a CPU.

Converted once from the torch module itself, pooling and all; compared with it before it is kept.
"""

from __future__ import annotations

import shutil
import tempfile
import threading
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import openvino

_HINTS = {"float32": "f32", "bfloat16": "bf16"}
_first_call = threading.Lock()
_MIN_COSINE = 0.999  # between the vectors of torch and of the graph, on the probe


class NotConvertible(Exception):
    """The model has parts that OpenVINO does not know, or comes out different."""


def engine(folder: Path, cache: Path, precision: str) -> Callable[[Any], Any]:
    """A function from batches (rows, ids, mask) to pairs (rows, vectors). Thread-safe.

    Raises NotConvertible.
    """
    graph = cache / "model.xml"
    if not graph.exists():
        _convert(folder, cache)
    core = openvino.Core()
    compiled = core.compile_model(
        core.read_model(graph),
        "CPU",
        {"PERFORMANCE_HINT": "THROUGHPUT", "INFERENCE_PRECISION_HINT": _HINTS[precision]},
    )

    width = compiled.get_property("OPTIMAL_NUMBER_OF_INFER_REQUESTS")

    def run(batches: Any) -> Iterator[tuple[list[int], Any]]:
        # No callbacks: they make OpenVINO's threads wait for Python's lock, and a model that is
        # freed meanwhile waits for those threads, for ever.
        running: deque[tuple[list[int], Any]] = deque()
        for rows, ids, mask in _shared(batches, width):
            if len(running) < width:
                request = compiled.create_infer_request()
            else:
                done, request = running.popleft()
                yield done, _result(request)
            request.start_async([ids, mask])
            running.append((rows, request))
        for rows, request in running:
            yield rows, _result(request)

    # The bindings make what they need at the first call, and two threads that both make it wait for
    # each other for ever (2026.4): so the first call is made here, by one thread at a time.
    with _first_call:
        one = np.ones((1, 1), np.int64)
        list(run([([0], one, one)]))
    return run


def _shared(batches: Sequence[Any], width: int) -> Iterator[Any]:
    """The batches, cut where `width` requests could not have a share each."""
    most = -(-sum(len(rows) for rows, _, _ in batches) // width)
    for rows, ids, mask in batches:
        for start in range(0, len(rows), most):
            part = slice(start, start + most)
            longest = int(mask[part].sum(axis=1).max())
            yield rows[part], *(np.ascontiguousarray(a[part, :longest]) for a in (ids, mask))


def _result(request: Any) -> Any:
    request.wait()
    return request.get_output_tensor(0).data.copy()


def _convert(folder: Path, cache: Path) -> None:
    """Write the graph to `cache`, whole or not at all."""
    import torch

    from rag.embedders.sentence_transformers import load_torch

    model = load_torch(folder, "cpu", torch.float32)

    class Encoder(torch.nn.Module):  # type: ignore[misc]  # torch is not there to check
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, input_ids: Any, attention_mask: Any) -> Any:
            features = {"input_ids": input_ids, "attention_mask": attention_mask}
            return self.model(features)["sentence_embedding"]

    ids = torch.randint(1000, 2000, (3, 9))
    mask = torch.ones_like(ids)
    mask[1, 5:] = 0
    shape = openvino.PartialShape([-1, -1])
    try:
        # The tracer warns of every branch in the model; the comparison below is the real check.
        with torch.inference_mode(), warnings.catch_warnings(action="ignore"):
            graph = openvino.convert_model(
                Encoder(), example_input=(ids, mask), input=[shape, shape]
            )
            expected = model({"input_ids": ids[:2, :7], "attention_mask": mask[:2, :7]})
        compiled = openvino.Core().compile_model(graph, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
        got = compiled([ids[:2, :7].numpy(), mask[:2, :7].numpy()])[0]
    except Exception as error:  # the tracer and the converter raise what they like
        raise NotConvertible(f"{type(error).__name__}: {str(error)[:200]}") from error
    want = expected["sentence_embedding"].numpy()
    norms = np.linalg.norm(want, axis=1) * np.linalg.norm(got, axis=1)
    if ((want * got).sum(1) / norms).min() < _MIN_COSINE:
        raise NotConvertible("the graph's vectors differ from the model's")
    cache.parent.mkdir(parents=True, exist_ok=True)
    part = Path(tempfile.mkdtemp(prefix=".convert-", dir=cache.parent))
    openvino.save_model(graph, part / "model.xml", compress_to_fp16=False)
    try:
        part.rename(cache)
    except OSError:  # another process was first
        shutil.rmtree(part)
