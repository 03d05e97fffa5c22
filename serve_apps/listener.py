"""A port of the replicas' own beside Serve's: every replica on a node listens on it and the kernel spreads connections.

Serve's way to a replica (HAProxy, then its wrapper around each request) costs an order more than reading, checking
and reserving it together: tests/bench/bench_orders.py measures both ways in one run. Callers that send many orders
use this port; everybody else, and everything that must find a replica on another node, uses Serve's.
"""

from __future__ import annotations

import asyncio
import socket
from typing import Any, Final

import uvicorn

DRAIN_TIMEOUT_S: Final = 3


class Listener:
    """An HTTP server for one ASGI application on a shared port."""

    def __init__(self, app: Any, port: int) -> None:
        """Serve ``app`` on ``port`` of this machine once ``open`` is called."""
        config = uvicorn.Config(
            app,
            lifespan="off",
            http="httptools",
            ws="none",
            access_log=False,
            log_config=None,
            server_header=False,
            timeout_keep_alive=90,
            timeout_graceful_shutdown=DRAIN_TIMEOUT_S,
            backlog=4096,
        )
        self._port = port
        self._server = uvicorn.Server(config)
        self._task: asyncio.Task[None] | None = None

    async def open(self) -> None:
        """Listen. Raises ``OSError`` where a program that does not share it has the port."""
        shared = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        shared.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        shared.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        try:
            shared.bind(("0.0.0.0", self._port))  # noqa: S104 - as Serve's own port; every route needs a key
        except OSError:
            shared.close()
            raise
        self._task = asyncio.create_task(self._server.serve(sockets=[shared]))

    async def close(self) -> None:
        """Take no new connection, finish what has begun, and end."""
        self._server.should_exit = True
        if self._task is not None:
            await self._task
