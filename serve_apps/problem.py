"""Errors as RFC 9457 problem details with a machine-readable ``code``: one shape for every application."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any, Final

MEDIA_TYPE: Final = "application/problem+json"


@dataclass(eq=False)
class Problem(Exception):
    """An answer that is not the wished one. ``code`` never changes its meaning; ``detail`` is for people."""

    status: int
    code: str
    detail: str
    extra: Mapping[str, Any] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)

    def body(self) -> dict[str, Any]:
        """The JSON document."""
        return {
            "type": f"urn:desk:problem:{self.code.lower().replace('_', '-')}",
            "title": HTTPStatus(self.status).phrase,
            "status": self.status,
            "code": self.code,
            "detail": self.detail,
            **self.extra,
        }


def unauthorised() -> Problem:
    """No key, or none that is known."""
    headers = {"www-authenticate": 'Bearer realm="desk"'}
    return Problem(401, "NOT_AUTHENTICATED", "send a valid API key: Authorization: Bearer tt_…", headers=headers)


def forbidden(scope: str, account: str | None = None) -> Problem:
    """A known key that may not do this."""
    where = f" on account {account}" if account else ""
    return Problem(403, "NOT_AUTHORISED", f"this API key has no right to {scope}{where}")


def unknown_account(account: str) -> Problem:
    """Nobody has set limits for an account of this name."""
    return Problem(404, "UNKNOWN_ACCOUNT", f"there is no account {account!r}", {"account": account})


def unavailable(detail: str) -> Problem:
    """The ledger did not answer: nothing is known to have happened, so the caller repeats with the same id."""
    return Problem(503, "RISK_UNAVAILABLE", f"{detail}; repeat with the same id", headers={"retry-after": "1"})
