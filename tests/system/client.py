"""What system tests do with the running desk: HTTP as its users, its ledger, its processes."""

from __future__ import annotations

import asyncio
import itertools
import time
import uuid
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import httpx
import psutil

from cluster import local
from cluster.anchors import audit_folder
from cluster.audit import verify
from cluster.ledger import Difference, Ledger
from cluster.venue import Venue
from cluster.venue_endpoint import configured_endpoint
from conf.settings import Settings, load_secrets
from strategies.model import TradingState

T = TypeVar("T")
TERMINAL = {"FILLED", "CANCELLED", "REJECTED", "EXPIRED", "DENIED"}


class Desk:
    """A running desk, seen from outside."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.key = local.local_api_key(settings.state_dir)
        headers = {"Authorization": f"Bearer {self.key}"}
        limits = httpx.Limits(max_connections=64)
        own = f"http://127.0.0.1:{settings.serve.orders_port}"
        self.doors = {
            door: httpx.Client(base_url=url, headers=headers, timeout=15, trust_env=False, limits=limits)
            for door, url in {"serve": settings.api_url, "own port": own}.items()
        }
        self.http = self.doors["serve"]
        self._numbers = itertools.count()
        self._run = uuid.uuid4().hex[:8]

    def close(self) -> None:
        for client in self.doors.values():
            client.close()

    def order_id(self) -> str:
        """An id no other test uses."""
        return f"t-{self._run}-{next(self._numbers)}"

    def order(self, **changes: Any) -> dict[str, Any]:
        """The body of a small market order, changed as wished."""
        body = {
            "client_order_id": self.order_id(),
            "account": "main",
            "strategy": "manual",
            "product_id": "BTC-USD",
            "side": "BUY",
            "type": "MARKET",
            "quantity": "0.001",
        }
        return body | changes

    def resting(self, **changes: Any) -> dict[str, Any]:
        """The body of a limit order far below the market."""
        return self.order(type="LIMIT", limit_price="1000.00", quantity="0.01") | changes

    def submit(self, body: dict[str, Any], door: str = "serve") -> httpx.Response:
        """Send one order through Serve's port or the replicas' own."""
        return self.doors[door].post("/v1/orders", json=body)

    def submit_all(
        self, bodies: Sequence[dict[str, Any]], persist_s: float = 0.0, door: str = "serve"
    ) -> list[httpx.Response | None]:
        """Send concurrently; with ``persist_s`` a failed one is repeated with its id for so long, else None."""

        def send(body: dict[str, Any]) -> httpx.Response | None:
            deadline = time.monotonic() + persist_s
            while True:
                try:
                    reply = self.submit(body, door)
                except httpx.TransportError:
                    reply = None
                if (reply is not None and reply.status_code < 500) or time.monotonic() > deadline:
                    return reply
                time.sleep(0.05)

        with ThreadPoolExecutor(32) as pool:
            return list(pool.map(send, bodies))

    def show(self, client_order_id: str) -> dict[str, Any]:
        reply = self.http.get(f"/v1/orders/{client_order_id}", params={"account": "main"})
        assert reply.status_code == 200, reply.text
        return dict(reply.json())

    def settled(self, client_order_id: str, timeout_s: float = 20.0) -> dict[str, Any]:
        """The order once it has ended."""
        eventually(lambda: self.show(client_order_id)["status"] in TERMINAL, timeout_s, f"{client_order_id} ended")
        return self.show(client_order_id)

    def cancel_all(self, strategy: str) -> None:
        """Cancel every open order of a strategy and wait until none is left."""

        def open_ids() -> list[str]:
            listed = self.http.get("/v1/orders", params={"account": "main", "status": "open", "limit": 500}).json()
            return [row["client_order_id"] for row in listed if row["strategy"] == strategy]

        for client_order_id in open_ids():
            self.http.delete(f"/v1/orders/{client_order_id}", params={"account": "main"})
        eventually(lambda: not open_ids(), 60, f"no open order of {strategy}")

    def differences(self) -> list[Difference]:
        """Figures of the books, of the account and of the desk, that do not add up."""

        async def proved(ledger: Ledger) -> list[Difference]:
            folder = audit_folder(self.settings)
            return [d for account in ("main", None) for d in await verify(ledger, account, folder)]

        return self.ledger(proved)

    def halt(self, scope: str, state: TradingState = TradingState.HALTED) -> None:
        """Make a scope as strict as this; ``global`` is the desk's."""
        account = None if scope == "global" else "main"
        self.ledger(lambda ledger: ledger.tighten(account, scope, state, "test", "a test"))

    def resume(self, scope: str) -> None:
        """Two people let trading go on."""
        account = None if scope == "global" else "main"

        async def agreed(ledger: Ledger) -> str:
            asked = await ledger.propose_resume(account, scope, "test", "first person", "the test is over")
            return (await ledger.approve(account, asked.id, asked.digest, "test", "second person")).outcome

        assert self.ledger(agreed) == "APPLIED"

    def ledger(self, work: Callable[[Ledger], Awaitable[T]]) -> T:
        """Run ``work`` on the desk's ledger."""

        async def connected() -> T:
            ledger = Ledger.connect(self.settings, load_secrets(self.settings))
            try:
                return await work(ledger)
            finally:
                await ledger.close()

        return asyncio.run(connected())

    def venue(self) -> Venue:
        """The venue as execution reaches it."""
        return Venue(configured_endpoint(self.settings, load_secrets(self.settings)))

    def all_processes(self) -> list[psutil.Process]:
        """Every process of the desk."""
        return local.desk_processes(self.settings.state_dir)

    def processes(self, name: str) -> list[psutil.Process]:
        """The desk's processes whose command line begins with ``name``."""
        found = self.all_processes()
        return [process for process in found if _title(process).startswith(name)]

    def replicas(self, deployment: str) -> list[psutil.Process]:
        """The replicas of a Serve deployment, as application:deployment."""
        return self.processes(f"ray::ServeReplica:{deployment}")


def eventually(holds: Callable[[], bool], timeout_s: float, what: str) -> float:
    """Wait until ``holds``; returns the seconds it took."""
    begin = time.monotonic()
    while not holds():
        if time.monotonic() - begin > timeout_s:
            raise AssertionError(f"not within {timeout_s} s: {what}")
        time.sleep(0.05)
    return time.monotonic() - begin


def _title(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""
