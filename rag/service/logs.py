"""Log lines: one JSON object a line, on standard error, from us and from every library.

A line is plain ASCII, because a line break or a control character of a request could otherwise
forge or garble others. No line can break what is logged: what cannot be written is left out.
"""

from __future__ import annotations

import json
import logging
import math
import re
import sys
from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager, suppress
from functools import lru_cache
from itertools import islice
from typing import Any, TextIO

import structlog
from structlog.contextvars import bound_contextvars, merge_contextvars
from structlog.processors import TimeStamper, add_log_level, format_exc_info
from structlog.typing import EventDict, WrappedLogger

from rag.service.redaction import redacted

TEXTS = frozenset(
    "question questions answer text texts history messages prompt body comment".split()
)
"""Fields that hold what people asked, wrote or were answered: only logged where that is set."""

_LONGEST = 16_384  # characters of a value; a trace or a document can be endless
_SHORT = 64
_DEEPEST = 5
_MOST = 100
_LONG_NUMBER = 10**10  # from here on it may be that of a phone or a card
_OURS = ("timestamp", "level", "logger")
_INPUT = re.compile(r"input_value=.*?, input_type=", re.DOTALL)  # how pydantic quotes a request
_log = structlog.get_logger("rag")


def configure(level: str = "info", *, texts: bool = False, stream: TextIO | None = None) -> None:
    """Send every log line of this process to `stream`, by default standard error.

    From `level` on for us and uvicorn, from "warning" on for other libraries. `texts`: questions
    and documents are logged too. Uvicorn must be started with log_config=None, access_log=False.
    """
    number = logging.getLevelNamesMapping()[level.upper()]
    structlog.configure(
        processors=[
            TimeStamper(fmt="iso", utc=True),
            add_log_level,
            merge_contextvars,
            format_exc_info,
            _Plain(texts),
            _rendered,
        ],
        wrapper_class=_unbreakable(number),
        logger_factory=structlog.WriteLoggerFactory(stream or sys.stderr),
        cache_logger_on_first_use=False,  # it costs 3 us, and a second call here takes effect
    )
    logging.root.handlers[:] = [_Forward()]
    logging.root.setLevel(max(number, logging.WARNING))
    logging.captureWarnings(True)
    logging.getLogger("uvicorn.access").disabled = True  # `access` has the line
    for name in ("uvicorn", "uvicorn.error", "rag"):
        logger = logging.getLogger(name)
        logger.handlers.clear()
        logger.propagate = True
        logger.setLevel(number)


def request(request_id: str, **values: object) -> AbstractContextManager[None]:
    """Every line that is written inside, by whomever, has the id and these values."""
    return bound_contextvars(request_id=request_id, **values)


def access(
    method: str,
    route: str,
    status: int,
    ms: float,
    *,
    caller: str = "",
    collection: str = "",
    failure: str = "",
    degraded: Iterable[str] = (),
    cached: bool = False,
) -> None:
    """The line of a request that is over. `route` is its template, `failure` its error's code.

    What is empty is left out.
    """
    write = _log.warning if status >= 500 else _log.info
    known = {
        "caller": caller,
        "collection": collection,
        "failure": failure,
        "degraded": list(degraded),
        "cached": cached,
    }
    known = {name: value for name, value in known.items() if value}
    write("request", method=method, route=route, status=status, ms=round(ms, 2), **known)


def failed(**values: object) -> None:
    """The exception that is being handled, with its trace: a fault of ours."""
    _log.error("unexpected", exc_info=True, **values)


def say(line: str) -> None:
    """What `rag.app.App` says when something slow or strange happens."""
    write = _log.warning if line.startswith("warning:") else _log.info
    write(line)


class _Plain:
    """The processor that makes of an event what JSON can hold and a log may."""

    def __init__(self, texts: bool) -> None:
        self._texts = texts

    def __call__(self, _logger: WrappedLogger, _level: str, event: EventDict) -> EventDict:
        plain = {name: event.pop(name) for name in _OURS if name in event}
        plain |= self._named(event, 0)
        if not self._texts and "exception" in plain:
            plain["exception"] = _INPUT.sub("input_type=", plain["exception"])
        return plain

    def _named(self, values: Mapping[Any, object], depth: int) -> dict[str, Any]:
        return {
            _text(name if type(name) is str else _shown(name)): self._value(value, depth)
            for name, value in values.items()
            if self._texts or name not in TEXTS
        }

    def _value(self, value: object, depth: int) -> Any:
        if type(value) is str:
            return _text(value)
        if value is None or isinstance(value, bool):
            return value
        if isinstance(value, float) and math.isfinite(value):
            return float(value)
        if type(value) is int and -_LONG_NUMBER < value < _LONG_NUMBER:
            return value
        if isinstance(value, Mapping) and depth < _DEEPEST:
            return self._named(value, depth + 1)
        if isinstance(value, list | tuple | set | frozenset) and depth < _DEEPEST:
            return [self._value(inner, depth + 1) for inner in islice(value, _MOST)]
        text = _text(_shown(value))
        return value if type(value) is int and text.lstrip("-").isdigit() else text


_known = lru_cache(2048)(redacted)  # routes, callers and collections come again and again


def _text(text: str) -> str:
    if len(text) <= _SHORT:
        return _known(text)
    if len(text) <= _LONGEST:
        return redacted(text)
    half = _LONGEST // 2  # without what the cut went through: half a number is not recognised
    return f"{redacted(text[:half])[:-64]} ... {redacted(text[-half:])[64:]}"


def _shown(value: object) -> str:
    """A value as text, whatever its class does."""
    try:
        return str(value)
    except Exception:
        return f"<{type(value).__name__}>"


_encode = json.JSONEncoder().encode


def _rendered(_logger: WrappedLogger, _level: str, event: EventDict) -> str:
    return _encode(event)


def _unbreakable(level: int) -> type[Any]:
    """structlog's fast logger, which drops what is below the level at no cost; it never raises."""

    class Logger(structlog.make_filtering_bound_logger(level)):  # type: ignore[misc]
        def _proxy_to_logger(self, name: str, event: str | None = None, **values: Any) -> None:
            with suppress(Exception):  # a full disk, a closed stream
                try:
                    super()._proxy_to_logger(name, event, **values)
                except Exception as error:
                    line = {"level": name, "event": redacted(_shown(event)), "lost": _shown(error)}
                    self._logger.msg(_encode(line))

    return Logger


class _Forward(logging.Handler):
    """What libraries log goes the same way as our own lines."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            message = record.getMessage()
        except Exception:  # arguments that do not fit the message
            message = _shown(record.msg)
        level = next(name for number, name in _LEVELS if record.levelno >= number)
        getattr(_log, level)(message, logger=record.name, exc_info=record.exc_info)


_LEVELS = ((50, "critical"), (40, "error"), (30, "warning"), (20, "info"), (-1, "debug"))
