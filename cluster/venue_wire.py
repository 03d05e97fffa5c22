"""HTTPS connections whose answers have an end: a deadline and a size for the whole of it, not for each of its parts.

The SDK's time-out (and that of ``requests``) bounds each read. A server that sends a byte now and then is within it
for ever, and the call never ends; here it ends like one that was never answered.
"""

from __future__ import annotations

import socket
import time
from typing import Any, Final

from requests.adapters import HTTPAdapter
from urllib3.connection import HTTPSConnection
from urllib3.connectionpool import HTTPSConnectionPool

ANSWER_BYTES_MAX: Final = 64 * 2**20


class DeadlineAdapter(HTTPAdapter):
    """Mount it for ``https://``: an answer must be there ``timeout_s`` after its request was sent."""

    def __init__(self, timeout_s: float) -> None:
        self._timeout_s = timeout_s
        super().__init__()

    def init_poolmanager(self, *arguments: Any, **options: Any) -> None:
        """Make the pool's connections ours."""
        super().init_poolmanager(*arguments, **options)
        timeout_s = self._timeout_s

        class Connection(_Connection):
            answer_s_max = timeout_s

        class Pool(HTTPSConnectionPool):
            ConnectionCls = Connection

        self.poolmanager.pool_classes_by_scheme = {"https": Pool}


class _Connection(HTTPSConnection):
    """A connection that counts what one answer costs."""

    answer_s_max = 5.0

    def connect(self) -> None:
        """Connect as always; from then on every read passes by here."""
        super().connect()
        self._began()
        bare: Any = self.sock
        read = bare.recv_into

        def recv_into(*arguments: Any, **options: Any) -> int:
            self._bound(bare)
            count: int = read(*arguments, **options)
            self._bytes += count
            return count

        # ``http.client`` reads through ``SocketIO``, which asks the socket for nothing else.
        bare.recv_into = recv_into

    def request(self, *arguments: Any, **options: Any) -> None:
        """Send a request; its answer's time begins now."""
        self._began()
        super().request(*arguments, **options)
        self._began()

    def _began(self) -> None:
        self._due_s = time.monotonic() + self.answer_s_max
        self._bytes = 0

    def _bound(self, bare: socket.socket) -> None:
        """Let the next read last as long as there is time; raises ``TimeoutError`` where there is none."""
        left_s = self._due_s - time.monotonic()
        if left_s <= 0 or self._bytes > ANSWER_BYTES_MAX:
            raise TimeoutError(f"no whole answer within {self.answer_s_max:g} s and {ANSWER_BYTES_MAX} bytes")
        bare.settimeout(left_s)
