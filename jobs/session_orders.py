"""How a session reaches the desk: /v1/orders over HTTP with a key of its own, as anybody's orders go through risk."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal, Protocol

import httpx

ANSWER_TIMEOUT_S: Final = 10.0
# Answers after which the same order with the same id may come again: nothing was decided, or we cannot know.
_LATER: Final = frozenset({401, 408, 429})


class DeskSilent(RuntimeError):
    """The desk gave no usable answer; what it did with the request is not known."""


@dataclass(frozen=True, slots=True)
class Said:
    """The desk's answer to an order: ACCEPTED, DENIED (for good, with a code), or LATER: the same id may come again."""

    outcome: Literal["ACCEPTED", "DENIED", "LATER"]
    code: str = ""
    detail: str = ""


class Door(Protocol):
    """Where a session's orders go."""

    def submit(self, body: Mapping[str, Any]) -> Said:
        """Send an order; a repeat of its id gets the first answer."""

    def check(self, body: Mapping[str, Any]) -> Said:
        """What would be answered to it now; nothing is sent."""

    def order(self, account: str, client_order_id: str) -> Mapping[str, Any] | None:
        """The order as the desk knows it, None where it does not; raises ``DeskSilent``."""


class HttpDoor:
    """The orders application of the desk at ``base_url``; the key is read from its file with every connection."""

    def __init__(self, base_url: str, key_file: Path) -> None:
        key = key_file.read_text(encoding="utf-8").strip()
        self._client = httpx.Client(
            base_url=base_url,
            headers={"Authorization": f"Bearer {key}"},
            timeout=ANSWER_TIMEOUT_S,
            trust_env=False,
        )

    def close(self) -> None:
        """Close all connections."""
        self._client.close()

    def submit(self, body: Mapping[str, Any]) -> Said:
        return self._ask("/v1/orders", body, 201)

    def check(self, body: Mapping[str, Any]) -> Said:
        said = self._ask("/v1/orders/check", body, 200)
        return said

    def order(self, account: str, client_order_id: str) -> Mapping[str, Any] | None:
        try:
            reply = self._client.get(f"/v1/orders/{client_order_id}", params={"account": account})
        except httpx.TransportError as error:
            raise DeskSilent(f"orders: {type(error).__name__}") from None
        answer = _json(reply)
        if reply.status_code == 404 and answer.get("code") == "NOT_FOUND":
            return None
        if reply.status_code != 200:
            raise DeskSilent(f"orders: {reply.status_code} {answer.get('code', '')} {answer.get('detail', '')}".strip())
        return answer

    def _ask(self, path: str, body: Mapping[str, Any], good: int) -> Said:
        try:
            reply = self._client.post(path, json=body)
        except httpx.TransportError as error:
            return Said("LATER", "NO_ANSWER", f"orders: {type(error).__name__}")
        answer = _json(reply)
        code, detail = str(answer.get("code", reply.status_code)), str(answer.get("detail", ""))[:500]
        if reply.status_code == good:
            denials = answer.get("denials") or [{}]
            if answer.get("verdict") == "ACCEPTED":
                return Said("ACCEPTED")
            return Said("DENIED", str(denials[0].get("code", "DENIED")), str(denials[0].get("message", "")))
        if reply.status_code >= 500 or reply.status_code in _LATER:
            return Said("LATER", code, detail)
        return Said("DENIED", code, detail)


def _json(reply: httpx.Response) -> dict[str, Any]:
    try:
        answer = reply.json()
    except ValueError:
        return {}
    return answer if isinstance(answer, dict) else {}
