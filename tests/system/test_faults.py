"""Parts of the desk are killed while orders come in: nothing is lost, nothing happens twice, the books add up."""

from __future__ import annotations

import threading

import psutil
import pytest

from cluster import local
from cluster.processes import DeskError
from tests.system.client import Desk, eventually

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

ORDERS = 300


def _books(desk: Desk, accepted: list[str], strategy: str) -> tuple[int, int]:
    """(lost, duplicated): acknowledged orders that the ledger lacks, and orders the venue has twice."""
    listed = desk.ledger(lambda ledger: ledger.open_orders("main"))
    stored = {row["client_order_id"] for row in listed if row["strategy"] == strategy}
    at_venue = [order.client_order_id for order in desk.venue().orders() if order.client_order_id in stored]
    return len(set(accepted) - stored), len(at_venue) - len(set(at_venue))


@pytest.mark.parametrize("door", ["serve", "own port"])
def test_killing_a_replica_in_the_middle_loses_and_duplicates_nothing(desk: Desk, door: str) -> None:
    replicas = desk.replicas("orders:risk")
    assert len(replicas) == 3
    bodies = [desk.resting(strategy="race", quantity="0.01") for _ in range(ORDERS)]
    killer = threading.Timer(0.15, replicas[0].kill)
    killer.start()
    replies = desk.submit_all(bodies, persist_s=30, door=door)
    killer.join()
    assert not psutil.pid_exists(replicas[0].pid) or replicas[0].status() == psutil.STATUS_ZOMBIE
    accepted = [
        b["client_order_id"] for b, r in zip(bodies, replies, strict=True) if r is not None and r.status_code == 201
    ]
    assert len(accepted) == 100
    assert all(reply is not None and reply.status_code in {201, 422} for reply in replies)
    assert _books(desk, accepted, "race") == (0, 0)
    assert desk.differences() == []
    eventually(lambda: len(desk.replicas("orders:risk")) == 3, 60, "three replicas again")
    desk.cancel_all("race")


def test_killing_execution_leaves_every_accepted_order_at_the_venue_once(desk: Desk) -> None:
    (execution,) = desk.replicas("execution:execution")
    bodies = [desk.resting(strategy="manual") for _ in range(60)]
    killer = threading.Timer(0.1, execution.kill)
    killer.start()
    accepted = [reply for reply in desk.submit_all(bodies, persist_s=30) if reply is not None]
    killer.join()
    assert {reply.status_code for reply in accepted} == {201}
    ids = {body["client_order_id"] for body in bodies}

    def at_venue() -> list[str]:
        return [o.client_order_id for o in desk.venue().orders() if o.client_order_id in ids]

    eventually(lambda: len(at_venue()) >= len(ids), 90, "every order is at the venue")
    assert sorted(at_venue()) == sorted(ids)
    eventually(lambda: all(desk.show(i)["status"] == "OPEN" for i in ids), 60, "every order is known to be open")
    assert desk.differences() == []
    desk.cancel_all("manual")


def test_without_the_ledger_orders_are_refused_and_up_brings_it_back_with_all_it_knew(desk: Desk) -> None:
    body = desk.resting()
    assert desk.submit(body).status_code == 201
    (server,) = [item for item in local.recorded(desk.settings.state_dir) if item.name == "valkey"]
    process = server.process()
    assert process is not None
    process.kill()
    process.wait(10)
    reply = desk.submit(desk.order())
    assert (reply.status_code, reply.json()["code"]) == (503, "RISK_UNAVAILABLE")
    assert reply.headers["retry-after"] == "1"
    local.up(desk.settings)
    assert desk.show(body["client_order_id"])["client_order_id"] == body["client_order_id"]
    assert desk.differences() == []
    again = desk.submit(body)
    assert (again.status_code, again.headers["idempotent-replayed"]) == (201, "true")
    desk.cancel_all("manual")


def test_up_on_a_running_desk_changes_nothing(desk: Desk) -> None:
    before = local.recorded(desk.settings.state_dir)
    local.up(desk.settings)
    assert local.recorded(desk.settings.state_dir) == before


def test_a_taken_port_is_named_with_the_way_to_change_it(desk: Desk, tmp_path_factory: pytest.TempPathFactory) -> None:
    other = desk.settings.model_copy(update={"state_dir": tmp_path_factory.mktemp("other") / "state"})
    with pytest.raises(
        DeskError, match=rf"serve.http_port: port {desk.settings.serve.http_port} is taken.*DESK_SERVE__"
    ):
        local.up(other)
    assert local.recorded(other.state_dir) == []


def test_no_secret_stands_in_a_log_a_job_or_an_environment(desk: Desk) -> None:
    state_dir = desk.settings.state_dir
    secrets = [line.split("=", 1)[1] for line in (state_dir / "secrets.env").read_text().splitlines()]
    secrets += [desk.key.split("_", 2)[2], (state_dir / "ray_token").read_text()]
    for folder in (state_dir / "logs", local.scratch_dir(state_dir) / "ray"):
        for path in folder.rglob("*"):
            if path.is_file() and not path.is_symlink():
                text = path.read_bytes()
                assert not [s for s in secrets if s.encode() in text], path
    for process in desk.processes(""):
        shown = repr((process.cmdline(), process.environ()))
        assert not [secret for secret in secrets if secret in shown], process
