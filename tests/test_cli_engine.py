"""`rag engine` end to end: the real llama.cpp, real weights, real signals."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from commands import rag
from servers import smollm2, wait_until

CONFIG = {
    "architectures": ["Qwen2ForCausalLM"],
    "hidden_size": 3584,
    "intermediate_size": 18944,
    "max_position_embeddings": 32768,
    "num_attention_heads": 28,
    "num_hidden_layers": 28,
    "num_key_value_heads": 4,
    "tie_word_embeddings": False,
    "vocab_size": 152064,
}
PARAMETERS = 7_615_616_512
READY_S = 60.0


# --- recommend


def test_recommend_shows_the_arithmetic_and_the_command() -> None:
    done = rag("engine", "recommend", "--model", smollm2(), "--context-tokens", "1024")
    assert done.status == 0, done.err
    assert "2 x 30 layers x 3 KV heads x 64 x 2 bytes\t22.5 KiB" in done.out
    assert "recommended: llama.cpp on CPU" in done.out
    assert "rag.engine.llamacpp_server" in done.out
    assert '[generator]\nkind = "openai"\nurl = "http://127.0.0.1:8000/v1"' in done.out


def test_recommend_in_json_and_serve_agree() -> None:
    arguments = ["--model", smollm2(), "--context-tokens", "1024", "--concurrency", "2"]
    told = rag("engine", "recommend", *map(str, arguments), "--json").json
    assert told["plan"]["engine"] == "llama.cpp"
    assert told["plan"]["kv_bytes"] == 2 * 1024 * 30 * 3 * 64 * 2 * 2
    serve = rag("engine", "serve", *map(str, arguments), "--dry-run")
    assert serve.status == 0, serve.err
    assert serve.out.split()[1:] == told["command"][1:]


@pytest.fixture
def l4(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine on which nvidia-smi finds two L4."""
    script = tmp_path / "bin" / "nvidia-smi"
    script.parent.mkdir()
    rows = "\\n".join(f"{n}, GPU-{n}, NVIDIA L4, 23034, 23034, 8.9" for n in range(2))
    script.write_text(f"#!/bin/sh\nprintf '{rows}\\n'\n", "utf-8")
    script.chmod(0o755)
    monkeypatch.setenv("PATH", f"{script.parent}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


@pytest.mark.usefixtures("l4")
def test_a_model_known_by_name_only_is_a_guess_that_says_so() -> None:
    done = rag("engine", "recommend", "--model", "Qwen/Qwen2.5-7B-Instruct", HF_HUB_OFFLINE="1")
    assert done.status == 0, done.err
    assert "2 x 28 layers x 4 KV heads x 128 x 2 bytes\t56 KiB" in done.out
    assert "note: assumed, because the model's own config.json is not at hand: 7 B" in done.out
    assert "DO_NOT_TRACK=1 VLLM_NO_USAGE_STATS=1 vllm serve Qwen/Qwen2.5-7B-Instruct " in done.out
    assert "--data-parallel-size 2" in done.out


@pytest.mark.usefixtures("l4")
def test_what_does_not_fit_is_one_line_that_says_what_would() -> None:
    arguments = ("engine", "recommend", "--model", "x/Llama-3.1-405B", "--json")
    done = rag(*arguments, HF_HUB_OFFLINE="1")
    assert done.status == 5
    assert "fits nowhere here" in done.error
    assert "16 x NVIDIA L4" in done.error
    given = rag("engine", "serve", "--model", "x/some", "--parameters", "405B", HF_HUB_OFFLINE="1")
    assert "fits nowhere here" in given.error


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        (["--model", "some/model"], 5, "--parameters 7B"),
        (["--model", "no such/model/here"], 5, "OWNER/NAME"),
        (["--model", "some/model", "--parameters", "big"], 2, "135M"),
        (["--model", "none.gguf"], 5, "cannot be read"),
        (["--model", "Qwen2.5-7B", "--context-tokens", "99999"], 2, "at most 32768 tokens"),
    ],
)
def test_wrong_input_is_one_line(arguments: list[str], status: int, words: str) -> None:
    done = rag("engine", "recommend", *arguments, HF_HUB_OFFLINE="1")
    assert done.status == status
    assert words in done.error


class Hub(BaseHTTPRequestHandler):
    """As much of the Hugging Face hub as tells the size of one model."""

    def do_GET(self) -> None:
        found: dict[str, Any] = {
            "/api/models/o/m": {"id": "o/m", "safetensors": {"parameters": {"BF16": PARAMETERS}}},
            "/o/m/resolve/main/config.json": CONFIG,
        }
        path = self.path.partition("?")[0]
        if path == "/api/models/o/m":
            found[path]["safetensors"]["total"] = PARAMETERS
        body = json.dumps(found.get(path, {"error": "not here"})).encode()
        self.send_response(200 if path in found else 404)
        for name, text in {
            "Content-Type": "application/json",
            "Content-Length": str(len(body)),
            "ETag": '"e1"',
            "X-Repo-Commit": "c" * 40,
        }.items():
            self.send_header(name, text)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    do_HEAD = do_GET

    def log_message(self, format: str, *args: object) -> None:
        """Nothing."""


@pytest.mark.usefixtures("l4")
def test_the_hub_is_asked_for_the_size(tmp_path: Path) -> None:
    with ThreadingHTTPServer(("127.0.0.1", 0), Hub) as server:
        threading.Thread(target=server.serve_forever).start()
        try:
            environment = {
                "HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}",
                "HF_HOME": str(tmp_path / "hf"),
                "HF_HUB_OFFLINE": "0",
                "NO_PROXY": "127.0.0.1",
            }
            done = rag("engine", "recommend", "--model", "o/m", "--json", **environment)
            missing = rag("engine", "recommend", "--model", "o/none", **environment)
        finally:
            server.shutdown()
    assert done.status == 0, done.err
    assert done.json["model"]["parameters"] == PARAMETERS
    assert done.json["plan"]["kv_sequence"] == 8192 * 56 * 1024
    assert not done.json["model"]["notes"]
    assert "404 Not Found" in missing.error


@pytest.mark.usefixtures("l4")
def test_a_model_in_the_local_cache_needs_no_hub(tmp_path: Path) -> None:
    import numpy as np
    from safetensors.numpy import save_file

    folder = tmp_path / "hf" / "hub" / "models--o--m"
    snapshot = folder / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text("abc", "utf-8")
    (snapshot / "config.json").write_text(json.dumps(CONFIG), "utf-8")
    save_file({"a": np.zeros(1000, np.float16)}, snapshot / "model.safetensors")
    environment = {"HF_HOME": str(tmp_path / "hf"), "HF_HUB_OFFLINE": "1"}
    done = rag("engine", "recommend", "--model", "o/m", "--json", **environment)
    assert done.status == 0, done.err
    assert (done.json["model"]["parameters"], done.json["model"]["source"]) == (1000, "o/m")


# --- serve


class Serving:
    """A running `rag engine serve`; what it wrote is in `out` and `err`."""

    def __init__(self, folder: Path, *arguments: str, **environment: str) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self._out, self._err = folder / "out", folder / "err"
        command = [sys.executable, "-m", "rag.cli", "engine", "serve", "--port", str(self.port)]
        with self._out.open("wb") as out, self._err.open("wb") as err:
            self.process = subprocess.Popen(
                [*command, *arguments],
                stdout=out,
                stderr=err,
                env={**os.environ, **environment},
                # One core, so one thread: more would spin when the machine is busy.
                preexec_fn=lambda: os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:1]),
            )

    @property
    def out(self) -> str:
        return self._out.read_text("utf-8")

    @property
    def err(self) -> str:
        return self._err.read_text("utf-8")

    def until_ready(self) -> None:
        def known() -> bool:
            assert self.process.poll() is None, self.err
            return "ready at" in self.out and 'model = "' in self.out

        wait_until(known, READY_S)

    def processes(self) -> list[tuple[int, str]]:
        """(pid, command line) of the guard and the engine."""
        found = []
        for folder in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):
                line = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode()
                if str(self.port) in line and "rag.cli" not in line:
                    found.append((int(folder.name), line))
        return found

    def end(self, number: signal.Signals = signal.SIGTERM) -> int:
        self.process.send_signal(number)
        return self.process.wait(30)


@contextmanager
def serving(folder: Path, *arguments: str, **environment: str) -> Iterator[Serving]:
    running = Serving(folder, *arguments, **environment)
    try:
        yield running
    finally:
        if running.process.poll() is None:
            running.end()
        assert running.processes() == []


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        return int(listening.getsockname()[1])


def ask(url: str, key: str = "") -> Any:
    body = {"messages": [{"role": "user", "content": "Say hello."}], "max_tokens": 4}
    headers = {"Content-Type": "application/json", "Authorization": f"Bearer {key}"}
    request = urllib.request.Request(
        f"{url}/v1/chat/completions", json.dumps(body).encode(), headers
    )
    with urllib.request.urlopen(request, timeout=60) as response:
        return json.load(response)


SMALL = ("--context-tokens", "512", "--concurrency", "1")


def test_serve_answers_and_ends_when_asked(tmp_path: Path) -> None:
    arguments = ("--model", str(smollm2()), *SMALL, "--name", "smol")
    with serving(tmp_path, *arguments) as engine:
        engine.until_ready()
        assert f"ready at {engine.url}/v1, model smol (" in engine.out
        assert f'kind = "openai"\nurl = "{engine.url}/v1"\nmodel = "smol"' in engine.out
        answer = ask(engine.url)
        assert answer["model"] == "smol"
        assert answer["choices"][0]["message"]["content"].strip()
        assert len(engine.processes()) == 2
        taken = rag("engine", "serve", "--model", smollm2(), "--port", str(engine.port))
        assert taken.status == 2
        assert "Address already in use" in taken.err
        assert engine.end() == 0
        assert "rag: the engine has ended" in engine.err
        assert "llama.cpp listens at" in engine.err  # the log is there
        assert "Traceback" not in engine.err


def test_control_c_is_a_way_to_end_it(tmp_path: Path) -> None:
    with serving(tmp_path, "--model", str(smollm2()), *SMALL) as engine:
        engine.until_ready()
        assert engine.end(signal.SIGINT) == 0


def test_no_engine_outlives_a_killed_serve(tmp_path: Path) -> None:
    with serving(tmp_path, "--model", str(smollm2()), *SMALL) as engine:
        engine.until_ready()
        assert engine.end(signal.SIGKILL) == -signal.SIGKILL
        wait_until(lambda: engine.processes() == [], 30)


def test_an_engine_that_dies_ends_serve_with_an_error(tmp_path: Path) -> None:
    log = tmp_path / "engine.log"
    with serving(tmp_path, "--model", str(smollm2()), *SMALL, "--log", str(log)) as engine:
        engine.until_ready()
        (pid,) = [pid for pid, line in engine.processes() if "guard" not in line]
        os.kill(pid, signal.SIGKILL)
        assert engine.process.wait(30) == 5
        assert engine.err.splitlines()[-1].startswith("rag: error: the engine was killed; ")
        assert "llama.cpp listens at" in log.read_text("utf-8")
        assert "listens at" not in engine.err


def test_a_model_that_does_not_load_tells_why(tmp_path: Path) -> None:
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(smollm2().read_bytes()[:20_000_000])
    with serving(tmp_path, "--model", str(broken), *SMALL) as engine:
        assert engine.process.wait(60) == 5
        last = engine.err.splitlines()[-1]
        assert last.startswith("rag: error: the engine ended with exit status 1: ")
        assert "model is corrupted or incomplete" in last


def test_the_key_is_asked_of_clients_and_shown_nowhere(tmp_path: Path) -> None:
    arguments = ("--model", str(smollm2()), *SMALL, "--api-key-env", "MY_KEY")
    with serving(tmp_path, *arguments, MY_KEY="s3cret-key") as engine:
        engine.until_ready()
        with pytest.raises(urllib.error.HTTPError, match="401"):
            ask(engine.url)
        assert ask(engine.url, "s3cret-key")["choices"]
        assert "s3cret-key" not in engine.out + engine.err + str(engine.processes())
    unset = rag("engine", "serve", "--model", smollm2(), "--api-key-env", "NO_SUCH_KEY")
    assert "NO_SUCH_KEY is not set" in unset.err


# What vLLM 0.32 wrote when it failed, shortened.
NO_MEMORY = """(EngineCore pid=7) ERROR 11-21 18:00:00 [core.py:1] ValueError: No memory for it.
RuntimeError: Engine core initialization failed. See root cause above. Failed core proc(s): {}"""
TOO_LONG = """pydantic_core._pydantic_core.ValidationError: 1 validation error for ModelConfig
  Value error, User-specified max_model_len (99999) is greater than the derived max_model_len.
    For further information visit https://errors.pydantic.dev/2.14/v/value_error"""


@pytest.fixture
def vllm(tmp_path: Path) -> Path:
    """An interpreter whose vLLM fails to start, and writes LOG, as many TIMES as wanted."""
    script = tmp_path / "python-with-vllm"
    script.write_text(
        "#!/bin/sh\n"
        '[ "$1" = -c ] && exit 0\n'
        'echo "KEY=$VLLM_API_KEY SPACE=$VLLM_CPU_KVCACHE_SPACE QUIET=$VLLM_NO_USAGE_STATS"\n'
        'echo "$@"\n'
        'yes "$LOG" | head -n "${TIMES:-$(echo "$LOG" | wc -l)}"\n'
        "exit 1\n",
        "utf-8",
    )
    script.chmod(0o755)
    return script


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    import numpy as np
    from safetensors.numpy import save_file

    folder = tmp_path / "tiny"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(CONFIG), "utf-8")
    save_file({"a": np.zeros(1000, np.float16)}, folder / "model.safetensors")
    return folder


@pytest.mark.parametrize(
    ("log", "cause"),
    [
        (NO_MEMORY, "ValueError: No memory for it."),
        (TOO_LONG, "Value error, User-specified max_model_len (99999) is greater than"),
        ("api_server.py: error: unrecognized arguments: --x", "api_server.py: error: unrecog"),
    ],
)
def test_the_cause_of_a_failed_vllm_is_told(
    vllm: Path, checkpoint: Path, log: str, cause: str
) -> None:
    arguments = ("--python", vllm, "--port", str(free_port()), "--context-tokens", "1024")
    done = rag(
        *("engine", "serve", "--model", checkpoint, *arguments, "--", "--swap-space", "0"),
        RAG_GENERATOR_API_KEY="s3cret",
        PATH="/usr/bin:/bin",
        LOG=log,
    )
    assert done.status == 5
    assert f"ended with exit status 1: {cause}" in done.err.splitlines()[-1]
    assert "KEY=s3cret SPACE=1 QUIET=1" in done.err
    assert "--max-model-len 1024" in done.err
    assert "--swap-space 0" in done.err


def test_an_engine_goes_on_when_its_log_cannot_be_written(
    vllm: Path, checkpoint: Path, tmp_path: Path
) -> None:
    full = ("--python", str(vllm), "--log", "/dev/full")
    log = {"LOG": "ValueError: No memory for it.", "TIMES": "20000"}  # more than a pipe holds
    path = {"PATH": "/usr/bin:/bin"}
    with serving(tmp_path, "--model", str(checkpoint), *full, **log, **path) as engine:
        assert engine.process.wait(30) == 5
        *_, warning, error = engine.err.splitlines()
    assert warning == (
        "rag: warning: the engine's log is lost from here on (No space left on device)"
    )
    assert "ended with exit status 1: ValueError: No memory for it." in error


def test_vllm_that_is_not_there_is_one_line(checkpoint: Path, tmp_path: Path) -> None:
    arguments = ("engine", "serve", "--model", checkpoint, "--dry-run")
    done = rag(*arguments, PATH="/usr/bin:/bin")
    assert done.status == 2
    assert "vLLM is not installed here" in done.error
    assert "has no vLLM" in rag(*arguments, "--python", sys.executable).error
    assert "is no program" in rag(*arguments, "--python", tmp_path / "none").error


def test_llama_cpp_that_is_not_there_is_one_line(tmp_path: Path) -> None:
    """A package that cannot be imported, as on a machine without it."""
    (tmp_path / "sitecustomize.py").write_text("import sys\nsys.modules['xllamacpp'] = None\n")
    arguments = ("--model", smollm2(), "--port", str(free_port()))
    done = rag("engine", "serve", *arguments, PYTHONPATH=str(tmp_path))
    assert done.status == 2
    assert "llama.cpp is not installed here" in done.error
    assert "pip install 'ragline[llamacpp]'" in done.error


def test_llama_cpp_takes_no_arguments_of_vllm() -> None:
    done = rag("engine", "serve", "--model", smollm2(), "--dry-run", "--", "--swap-space", "0")
    assert done.status == 2
    assert "takes no arguments" in done.error


def test_an_open_host_without_a_key_is_warned_of(tmp_path: Path) -> None:
    arguments = ("--model", str(smollm2()), *SMALL, "--host", "0.0.0.0")
    with serving(tmp_path, *arguments) as engine:
        engine.until_ready()
        assert "rag: warning: whoever reaches 0.0.0.0" in engine.err
        assert f"ready at {engine.url}/v1" in engine.out
