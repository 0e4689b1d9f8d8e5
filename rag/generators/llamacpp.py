"""llama.cpp in this process, by xllamacpp: a GGUF file on a CPU, without a server to start.

Its engine is only reached as llama.cpp's own server is, on a port of this machine and with a key
that nobody else has. So what is true of a server is true of it: streaming, cancellation, counts.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from pydantic import SecretStr

from rag.errors import ConfigError, ModelUnavailable
from rag.generators.openai import OpenAIGenerator
from rag.generators.servers import LlamaServer

_WINDOW = 4096  # tokens; the model's own may be so long that its cache fills the memory


class LlamaCppGenerator(OpenAIGenerator):
    """Loads the GGUF file `model`.

    `engine` are fields of llama.cpp's parameters by name, such as {"n_gpu_layers": 99}, and
    `n_threads`. The window is `context_tokens` for each of `n_parallel` answers at a time.
    """

    server = LlamaServer

    def __init__(
        self,
        *,
        model: str,
        context_tokens: int = 0,
        engine: Mapping[str, Any] | None = None,
        say: Callable[[str], None] = lambda _: None,
        **settings: Any,
    ) -> None:
        path = Path(model).expanduser()
        if not (model and path.is_file()):
            raise ConfigError(
                f"generator.model is {model!r}, no file", "set it to the path of a .gguf file"
            )
        penalty = settings.pop("repetition_penalty", None)
        key = secrets.token_urlsafe(24)
        say(f"loading {path.name}")
        self._engine = _loaded(path, key, context_tokens or _WINDOW, engine or {})
        super().__init__(
            **settings
            | {
                "url": f"{self._engine.listening_address}/v1",
                "model": path.stem,
                "api_key": SecretStr(key),
                "context_tokens": context_tokens,
                # llama.cpp has its own name for it.
                "options": {"repeat_penalty": penalty, **(settings.get("options") or {})},
            }
        )

    def close(self) -> None:
        """Free the model."""
        self._engine = None


def _loaded(path: Path, key: str, context_tokens: int, engine: Mapping[str, Any]) -> Any:
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = str(path)
    params.model_alias = {path.stem}
    params.api_keys = [key]
    params.port = 0
    params.n_ctx = context_tokens * engine.get("n_parallel", 1)  # llama.cpp divides it among them
    params.verbosity = 0
    params.ui = params.endpoint_slots = False
    for name, value in engine.items():
        if name == "n_threads":
            params.cpuparams.n_threads = params.cpuparams_batch.n_threads = value
        elif name.startswith("_") or not hasattr(params, name):
            close = get_close_matches(name, dir(params), n=3)
            raise ConfigError(
                f"llama.cpp has no parameter {name!r} (generator.engine)",
                f"did you mean {' or '.join(close)}?" if close else "see its common_params",
            )
        else:
            try:
                setattr(params, name, value)
            except (TypeError, ValueError, OverflowError) as error:
                raise ConfigError(
                    f"generator.engine.{name} is wrong ({error})", "mend it"
                ) from error
    try:
        return xllamacpp.Server(params)
    except RuntimeError as error:
        raise ModelUnavailable(
            f"llama.cpp cannot load {path} ({error})",
            "is it a whole .gguf file, and does it fit into memory?",
        ) from error
