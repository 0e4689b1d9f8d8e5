"""JSON and server-sent events, as bytes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from starlette.responses import Response


def json_bytes(value: Any) -> bytes:
    """UTF-8. What UTF-8 cannot say, a lone surrogate, is written as JSON's own escape."""
    return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode(
        "utf-8", "backslashreplace"
    )


def json_response(
    value: Any, status: int = 200, headers: Mapping[str, str] | None = None
) -> Response:
    """A reply that nothing but `json` has looked at: what the service gives is well formed."""
    return Response(json_bytes(value), status, headers, "application/json")


def sse(event: str, data: Any) -> bytes:
    """One server-sent event; its data is JSON on one line."""
    return b"event: %s\ndata: %s\n\n" % (event.encode(), json_bytes(data))


HEARTBEAT = b": still here\n\n"
"""What keeps a connection open through proxies; clients leave comments out."""

STREAM_HEADERS = {
    "Cache-Control": "no-store",
    "X-Accel-Buffering": "no",  # nginx would gather the tokens
}
