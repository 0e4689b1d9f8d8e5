"""Every error of the service in one shape, with the status that `rag.errors` gives it."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, Field
from starlette.exceptions import HTTPException
from starlette.responses import Response

from rag.errors import RagError, RequestRefused, StoreUnavailable
from rag.service.replies import json_response

_RETRY_S = 5  # where what failed does not say when it may be back
_SEND_JSON = "send a JSON object, with the header Content-Type: application/json"
_CODES = {404: "not_found", 405: "method_not_allowed", 413: "too_large"}
_HINTS = {
    400: _SEND_JSON,
    404: "see /docs for what there is",
    405: "see the Allow header",
    413: "send less at a time",
}


class Problem(BaseModel):
    """What went wrong, and what to do next."""

    code: str = Field(examples=["unknown_collection"])
    message: str = Field(examples=["there is no collection 'handbok'"])
    hint: str = Field(examples=["see GET /collections"])
    request_id: str = Field(examples=["5f0c3c0e9a0b4f6fb1f2a3c4d5e6f708"])


class Failure(BaseModel):
    """The one shape of errors."""

    error: Problem


def problem(error: RagError, request_id: str) -> dict[str, Any]:
    """An error as JSON and server-sent events give it."""
    return _problem(code_of(error), error.message, error.hint, request_id)


def code_of(error: RagError) -> str:
    """The name of its class in lower case with underscores, such as "unknown_collection"."""
    return re.sub(r"(?<!^)(?=[A-Z])", "_", type(error).__name__).lower()


def wrong(place: Sequence[int | str], found: Mapping[str, Any]) -> str:
    """What pydantic has found to be wrong at a place of the request, in one line."""
    where = ".".join(map(str, place)) or "the request"
    said = "no such field" if found["type"] == "extra_forbidden" else found["msg"]
    return f"{where}: {said}"[:500]


def unexpected(request_id: str) -> Response:
    """The reply to what should not happen: its trace is in the log, under the same id."""
    body = _problem(
        "unexpected",
        "something unexpected failed",
        "look for the request_id in the log",
        request_id,
    )
    return json_response(body, 500)


def answer_errors(api: FastAPI) -> None:
    """Let `api` answer every error in this shape."""
    api.add_exception_handler(RagError, _rag_error)
    api.add_exception_handler(RequestValidationError, _invalid)
    api.add_exception_handler(HTTPException, _http_error)


def responses(*more: int) -> dict[int | str, dict[str, Any]]:
    """The errors of a route, for its OpenAPI description."""
    statuses = (400, 401, 403, 413, 422, 429, 500, 503, *more)
    return {status: {"model": Failure} for status in statuses}


async def _rag_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, RagError)
    headers = {}
    retry_after = error.retry_after if isinstance(error, RequestRefused) else 0
    if error.http_status == 503:
        retry_after = retry_after or _RETRY_S
    if retry_after:
        headers["Retry-After"] = str(math.ceil(retry_after))
    if error.http_status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    request.state.failure = code_of(error)
    metrics = request.app.state.desk.metrics
    if isinstance(error, StoreUnavailable):
        metrics.store_failed()
    if error.http_status in (401, 403, 429, 503):
        metrics.refused(code_of(error))
    return json_response(problem(error, request.state.id), error.http_status, headers)


async def _invalid(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    request.state.failure = "invalid_request"
    if first["type"] == "json_invalid":
        body = _problem(
            "malformed_json",
            f"the body is not JSON ({first['ctx']['error']})",
            _SEND_JSON,
            request.state.id,
        )
        return json_response(body, 400)
    if first["loc"] == ("body",):
        body = _problem(
            "invalid_request", "the body is no JSON object", _SEND_JSON, request.state.id
        )
        return json_response(body, 422)
    message = wrong(first["loc"][1:], first)
    body = _problem("invalid_request", message, "see /docs", request.state.id)
    return json_response(body, 422)


async def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    request.state.failure = _CODES.get(error.status_code, "bad_request")
    body = _problem(
        request.state.failure,
        str(error.detail),
        _HINTS.get(error.status_code, "see /docs"),
        request.state.id,
    )
    headers = dict(error.headers or {})
    if error.status_code == 405:
        headers["Allow"] = _allowed(request) or headers.get("Allow", "")
    return json_response(body, error.status_code, headers)


def _allowed(request: Request) -> str:
    """The methods of a path; each of them is a route of its own."""
    described = request.app.openapi()["paths"]
    path = getattr(request.scope.get("route"), "path_format", "")
    return ", ".join(sorted(method.upper() for method in described.get(path, ())))


def _problem(code: str, message: str, hint: str, request_id: str) -> dict[str, Any]:
    said = {"code": code, "message": message, "hint": hint, "request_id": request_id}
    return {"error": said}
