"""Every failure of the API as one document: handlers that make a problem of each exception, and its OpenAPI schema."""

from __future__ import annotations

import json
import logging
import reprlib
from collections.abc import Sequence
from http import HTTPStatus
from typing import Any, Final

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException

from cluster.ledger import LedgerError, LedgerUnavailable
from serve_apps.problem import MEDIA_TYPE, Problem

logger = logging.getLogger("ray.serve")

_CODES: Final = {400: "INVALID_BODY", 404: "NOT_FOUND", 405: "METHOD_NOT_ALLOWED", 413: "BODY_TOO_LARGE"}

# A body with thousands of unknown fields is answered with the first few.
FIELDS_MAX: Final = 20

PROBLEM_SCHEMA: Final[dict[str, Any]] = {
    "type": "object",
    "title": "Problem",
    "description": "An RFC 9457 problem document. ``code`` never changes its meaning; ``detail`` is for people.",
    "required": ["type", "title", "status", "code", "detail"],
    "properties": {
        "type": {"type": "string", "format": "uri", "examples": ["urn:desk:problem:not-authorised"]},
        "title": {"type": "string", "description": "the HTTP status in words"},
        "status": {"type": "integer", "minimum": 400, "maximum": 599},
        "code": {"type": "string", "pattern": "^[A-Z0-9_]+$", "examples": ["NOT_AUTHORISED"]},
        "detail": {"type": "string", "description": "what happened here, naming the thing"},
        "field": {"type": "string", "description": "the field that breaks a rule, as a dotted path"},
        "value": {"type": "string", "description": "what the field was"},
        "rule": {"type": "string", "description": "what was expected of it"},
        "fields": {
            "type": "array",
            "description": "every field that breaks a rule (INVALID_REQUEST)",
            "items": {
                "type": "object",
                "required": ["field", "rule", "value"],
                "properties": {name: {"type": "string"} for name in ("field", "rule", "value")},
            },
        },
    },
    "additionalProperties": True,
}


def problems(*statuses: int, **described: str) -> dict[int | str, dict[str, Any]]:
    """The ``responses`` of a route: these statuses answer with a problem document.

    400, 401, 408, 413, 415 and 503 can come from every guarded route and are added by themselves. ``described`` gives a
    status other words, as in ``_409="the id is taken"``.
    """
    words = {int(name[1:]): text for name, text in described.items()}
    wanted = sorted({400, 401, 403, 408, 413, 415, 422, 500, 503, *statuses, *words})
    return {status: _response(words.get(status, HTTPStatus(status).phrase)) for status in wanted}


def problem_response(problem: Problem) -> Response:
    """The document as a response."""
    # What a caller sent may be repeated in it, half a surrogate pair included, which UTF-8 cannot hold.
    content = json.dumps(problem.body(), ensure_ascii=False).encode("utf-8", "replace")
    return Response(content, problem.status, dict(problem.headers), media_type=MEDIA_TYPE)


def internal() -> Problem:
    """A fault of ours; what it was stands in the log and nowhere else."""
    return Problem(500, "INTERNAL", "the request could not be served; the fault is logged")


def ledger_away() -> Problem:
    """The ledger did not answer; the error's own text names hosts and stays inside."""
    return Problem(503, "RISK_UNAVAILABLE", "the ledger does not answer; try again", headers={"retry-after": "1"})


def invalid_request(field: str, value: object, rule: str) -> Problem:
    """One field of the request breaks a rule."""
    one = {"field": field, "rule": rule, "value": reprlib.repr(value)}
    return Problem(422, "INVALID_REQUEST", f"{field}: {rule}, was {one['value']}", {**one, "fields": [one]})


def install(app: FastAPI) -> None:
    """Make ``app`` answer with problem documents only."""
    app.add_exception_handler(Problem, _on_problem)
    app.add_exception_handler(HTTPException, _on_http)
    app.add_exception_handler(RequestValidationError, _on_invalid)
    app.add_exception_handler(LedgerUnavailable, _on_unavailable)
    app.add_exception_handler(LedgerError, _on_ledger_error)


async def _on_problem(_: Request, error: Any) -> Response:
    return problem_response(error)


async def _on_http(request: Request, error: Any) -> Response:
    code = _CODES.get(error.status_code, HTTPStatus(error.status_code).name)
    detail = str(error.detail) if error.status_code != 404 else "nothing is at this path"
    if error.status_code == 405:
        detail = f"{request.method} is not possible at this path"
    return problem_response(Problem(error.status_code, code, detail, headers=dict(error.headers or {})))


async def _on_invalid(_: Request, error: Any) -> Response:
    first = error.errors()[0]
    if first["type"] == "json_invalid":
        detail = f"not JSON at position {first['loc'][-1]}: {first.get('ctx', {}).get('error', '')}"
        return problem_response(Problem(400, "INVALID_BODY", detail))
    fields = [
        {"field": _path(item["loc"]), "rule": str(item["msg"]), "value": reprlib.repr(item.get("input"))}
        for item in error.errors()[:FIELDS_MAX]
    ]
    detail = "; ".join(f"{item['field']}: {item['rule']}" for item in fields)
    return problem_response(Problem(422, "INVALID_REQUEST", detail, {"fields": fields}))


async def _on_unavailable(_: Request, error: Any) -> Response:
    logger.warning("ledger unavailable: %s", error)
    return problem_response(ledger_away())


async def _on_ledger_error(request: Request, error: Any) -> Response:
    logger.error("%s %s", request.method, request.scope.get("route_path", ""), exc_info=error)
    return problem_response(internal())


def _path(location: Sequence[int | str]) -> str:
    """``("query", "limit")`` and ``("body", "reason")`` as the caller wrote them: ``limit``, ``reason``."""
    text = ""
    for part in location[1:] or location:
        text += f"[{part}]" if isinstance(part, int) else f".{part}"
    return text.strip(".")


def _response(description: str) -> dict[str, Any]:
    return {
        "description": description,
        "content": {MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}}},
    }
