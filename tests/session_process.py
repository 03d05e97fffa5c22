"""A session as a process a test may kill: real candles of the simulator's past, its own clock, orders over HTTP.

``python -m tests.session_process DIR URL HOST_PORT EXCHANGE_DIR BEGIN_NS``. A minute of the session passes in a moment,
except while it waits for an order: the desk and the venue live in the present. Before each look the venue's mid is
pinned at the open of the session's running bar, so that a market order meets about the price the model assumes.
"""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import requests

from cluster.live_bars import LiveBars
from cluster.sessions import SessionFolder
from cluster.venue import Venue, simulator_endpoint
from jobs.session_engine import FOLLOW_INTERVAL_S, Session
from jobs.session_orders import HttpDoor
from strategies.model import NS_PER_S, Bars

# How long a real moment is in which the session takes a tenth of a second to pass.
MOMENT_S: Final = 0.02


@dataclass
class QuickClock:
    """Real time passes only in short sleeps: those with which an order is waited for."""

    now_ns: int

    def time_ns(self) -> int:
        return self.now_ns

    def sleep(self, seconds: float) -> None:
        self.now_ns += int(seconds * NS_PER_S)
        if seconds <= FOLLOW_INTERVAL_S:
            time.sleep(MOMENT_S)


def main(folder: SessionFolder, url: str, host_port: str, exchange_dir: Path, begin_ns: int) -> None:
    """Run the session from ``begin_ns``, or on behind its last bar."""
    spec, checkpoint = folder.spec(), folder.checkpoint()
    if checkpoint is not None:
        begin_ns = max(begin_ns, checkpoint.last_ts_ns + spec.granularity.ns)
    clock = QuickClock(begin_ns + NS_PER_S)
    endpoint = simulator_endpoint(host_port, exchange_dir)
    venue = Venue(replace(endpoint, key_name=None, key_secret=None))
    control = requests.Session()
    control.trust_env, control.verify = False, str(exchange_dir / "ca.pem")
    control.headers["Authorization"] = f"Bearer {(exchange_dir / 'sim_token').read_text()}"

    def fetch(start_s: int, end_s: int) -> Bars:
        bars = venue.candles(spec.product_id, spec.granularity, start_s, end_s)
        body = {"product_id": spec.product_id, "price": f"{bars.open[-1]:.2f}"}
        control.post(f"https://{host_port}/sim/price", json=body, timeout=10).raise_for_status()
        return bars

    bars = LiveBars(spec.product_id, spec.granularity, fetch)
    door = HttpDoor(url, folder.key_file)
    with folder.driving():
        Session(folder, venue.product(spec.product_id), bars, door, clock).run()
    door.close()
    venue.close()
    control.close()


if __name__ == "__main__":
    main(SessionFolder(Path(sys.argv[1])), sys.argv[2], sys.argv[3], Path(sys.argv[4]), int(sys.argv[5]))
