"""Start the exchange simulator as the process a user starts, and reach it: for tests only."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import requests

from cluster.venue import Venue, VenueEndpoint, simulator_endpoint

ROOT: Final = Path(__file__).resolve().parents[1]
PREFIX: Final = "/api/v3/brokerage"
START_S_MAX: Final = 30.0


@dataclass(frozen=True)
class Simulator:
    """A running simulator."""

    process: subprocess.Popen[str]
    host_port: str
    state_dir: Path

    @property
    def endpoint(self) -> VenueEndpoint:
        """The endpoint with the ES256 key."""
        return simulator_endpoint(self.host_port, self.state_dir)

    def venue(self) -> Venue:
        """A venue with its own connections; the caller closes it."""
        return Venue(self.endpoint)

    def request(self, method: str, path: str, **arguments: Any) -> requests.Response:
        """A bare request over verified TLS, without the SDK and without a token unless given in ``headers``."""
        with requests.Session() as session:
            session.trust_env = False
            session.verify = str(self.state_dir / "ca.pem")
            return session.request(method, f"https://{self.host_port}{path}", timeout=10, **arguments)

    def push_price(self, product_id: str, price: str | None) -> dict[str, Any]:
        """Pin a product's mid (None lets it go)."""
        return self.control("/sim/price", product_id=product_id, price=price)

    def control(self, path: str, **body: Any) -> dict[str, Any]:
        """A request to the control surface that must succeed: a POST where there is a body, else a GET."""
        answer = self.control_request("POST" if body else "GET", path, body or None)
        assert answer.ok, f"{path}: {answer.status_code} {answer.text[:300]}"
        content: dict[str, Any] = answer.json()
        return content

    def control_request(self, method: str, path: str, body: dict[str, Any] | None) -> requests.Response:
        """A request to the control surface."""
        token = (self.state_dir / "sim_token").read_text()
        return self.request(method, path, json=body, headers={"Authorization": f"Bearer {token}"})

    def stop(self) -> int:
        """Stop by SIGTERM and return the exit code; a simulator that does not obey is killed and the test fails."""
        self.process.terminate()
        try:
            return self.process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise


def start_simulator(state_dir: Path, *options: str) -> Simulator:
    """Start on a free port and wait for ``/healthz``; raises ``RuntimeError`` with the output where none comes."""
    (state_dir / "address.json").unlink(missing_ok=True)
    process = subprocess.Popen(
        [sys.executable, "-m", "cluster.exchange_sim", "--port", "0", "--state-dir", str(state_dir), *options],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    deadline = time.monotonic() + START_S_MAX
    while time.monotonic() < deadline and process.poll() is None:
        with contextlib.suppress(OSError, ValueError, requests.RequestException):
            address = json.loads((state_dir / "address.json").read_text())
            simulator = Simulator(process, address["host_port"], state_dir)
            if simulator.request("GET", "/healthz").json() == {"status": "ok"}:
                return simulator
        time.sleep(0.05)
    process.kill()
    output = process.communicate()[0]
    raise RuntimeError(f"the simulator did not become ready within {START_S_MAX:.0f} s: {output}")


@contextlib.contextmanager
def running_simulator(state_dir: Path, *options: str) -> Iterator[Simulator]:
    """A simulator for the duration of a block."""
    simulator = start_simulator(state_dir, *options)
    try:
        yield simulator
    finally:
        if simulator.process.poll() is None:
            simulator.stop()
        if simulator.process.stdout is not None:
            simulator.process.stdout.close()
