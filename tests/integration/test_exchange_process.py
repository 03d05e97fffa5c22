"""The simulator as a process: start, refusals to start, stop, TLS, bounds, and strangers at the door."""

from __future__ import annotations

import json
import os
import signal
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import jwt
import pytest
import requests
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from tests.simulator import PREFIX, ROOT, Simulator, running_simulator, start_simulator

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def simulator(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Simulator]:
    with running_simulator(tmp_path_factory.mktemp("exchange"), "--history-days", "3") as running:
        yield running


def run(*options: str) -> subprocess.CompletedProcess[str]:
    """Run to the end; for starts that must fail."""
    command = [sys.executable, "-m", "cluster.exchange_sim", *options]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=30, check=False)


def test_help_tells_every_option() -> None:
    done = run("--help")
    assert done.returncode == 0
    for option in ("--port", "--state-dir", "--seed", "--history-days", "--usd", "--taker-fee-bps", "SIMULATED"):
        assert option in done.stdout


def test_a_taken_port_is_named_with_the_way_out(simulator: Simulator, tmp_path: Path) -> None:
    port = simulator.host_port.rpartition(":")[2]
    done = run("--port", port, "--state-dir", str(tmp_path))
    assert done.returncode == 2
    assert f"port {port} of 127.0.0.1 is taken; choose another with --port" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_state_folder_has_one_simulator(simulator: Simulator) -> None:
    done = run("--port", "0", "--state-dir", str(simulator.state_dir))
    assert done.returncode == 2
    assert "another simulator is running there" in done.stderr
    assert simulator.request("GET", "/healthz").status_code == 200


def test_a_state_folder_that_cannot_be_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    done = run("--port", "0", "--state-dir", str(tmp_path / "file"))
    assert (done.returncode, "Traceback" in done.stderr) == (2, False)
    assert "--state-dir" in done.stderr


def test_a_damaged_journal_is_an_error_that_names_it(tmp_path: Path) -> None:
    (tmp_path / "journal.jsonl").write_text('{"kind": "magic"}\n')
    done = run("--port", "0", "--state-dir", str(tmp_path))
    assert done.returncode == 2
    assert "journal.jsonl line 1" in done.stderr


@pytest.mark.parametrize(
    "options",
    [
        ["--port", "-1"],
        ["--port", "65536"],
        ["--port", "http"],
        ["--seed", "-1"],
        ["--seed", "1.5"],
        ["--history-days", "0"],
        ["--history-days", "20001"],
        ["--usd", "-5"],
        ["--btc", "NaN"],
        ["--eth", "1e9"],
        ["--taker-fee-bps", "1000"],
        ["--maker-fee-bps", "-1"],
        ["--host", "no.such.host.invalid"],
        ["--portfolio", "../x"],
        ["--portfolio", "view"],
        ["--requests-per-s", "-1"],
        ["--replay-day", "yesterday"],
        ["--stp", "none"],
        ["--cancel-delay-ms", "600001"],
        ["--accept-delay-ms", "-1"],
        ["--unknown"],
    ],
)
def test_bad_options_are_refused(tmp_path: Path, options: list[str]) -> None:
    done = run("--port", "0", "--state-dir", str(tmp_path), *options)
    assert (done.returncode, "Traceback" in done.stderr) == (2, False)
    assert options[0] in done.stderr


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_stops_it_soon_even_with_clients_connected(tmp_path: Path, number: signal.Signals) -> None:
    simulator = start_simulator(tmp_path, "--history-days", "3")
    venue = simulator.venue()
    venue.accounts()
    context = ssl.create_default_context(cafile=str(tmp_path / "ca.pem"))
    host, _, port = simulator.host_port.rpartition(":")
    with socket.create_connection((host, int(port))) as raw, context.wrap_socket(raw, server_hostname=host) as half:
        half.sendall(b"POST " + PREFIX.encode() + b"/orders HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n")
        begin_s = time.monotonic()
        simulator.process.send_signal(number)
        assert simulator.process.wait(timeout=10) == 0
        # 0.7 s alone on the machine; the clients would hold it for 75 s.
        assert time.monotonic() - begin_s < 5.0
    venue.close()
    assert simulator.process.stdout is not None
    simulator.process.stdout.close()


def test_a_signal_stops_it_soon_with_streams_open_and_requests_hanging(tmp_path: Path) -> None:
    from tests.exchange_stream import Stream

    simulator = start_simulator(tmp_path, "--history-days", "3")
    stream = Stream(simulator)
    stream.subscribe("heartbeats")
    stream.channel("heartbeats")
    simulator.control("/sim/faults", rules=[{"fault": "hang", "s": 60}])
    context = ssl.create_default_context(cafile=str(tmp_path / "ca.pem"))
    host, _, port = simulator.host_port.rpartition(":")
    with socket.create_connection((host, int(port))) as raw, context.wrap_socket(raw, server_hostname=host) as half:
        half.sendall(f"GET {PREFIX}/time HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        deadline = time.monotonic() + 10
        while simulator.control("/sim/faults")["struck"] != {"hang": 1}:
            assert time.monotonic() < deadline
        begin_s = time.monotonic()
        assert simulator.stop() == 0
        assert time.monotonic() - begin_s < 5.0
    stream.connection.close()
    assert simulator.process.stdout is not None
    simulator.process.stdout.close()


def test_an_answer_without_a_body_and_one_after_a_question_arrive(simulator: Simulator) -> None:
    """HEAD has no body to wait for; 100-continue is an answer before the answer; two requests may come at once."""
    context = ssl.create_default_context(cafile=str(simulator.state_dir / "ca.pem"))
    host, _, port = simulator.host_port.rpartition(":")

    def ask(*parts: bytes) -> bytes:
        with (
            socket.create_connection((host, int(port)), timeout=10) as raw,
            context.wrap_socket(raw, server_hostname=host) as tls,
        ):
            found = b""
            for part in parts:
                tls.sendall(part)
                found += tls.recv(65_536)
            while chunk := tls.recv(65_536):
                found += chunk
            return found

    head = ask(b"HEAD /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 404 ")
    assert head.endswith(b"\r\n\r\n")
    path = f"{PREFIX}/orders".encode()
    question = (
        b"POST "
        + path
        + b" HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 2\r\nConnection: close\r\n\r\n"
    )
    answer = ask(question, b"{}")
    assert answer.startswith(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 401 ")
    two = b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\nGET /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
    assert ask(two).count(b'{"status":"ok"}') == 2


def test_it_tells_where_it_is_and_that_it_is_simulated(tmp_path: Path) -> None:
    simulator = start_simulator(tmp_path, "--history-days", "3")
    address = json.loads((tmp_path / "address.json").read_text())
    assert address == {"host_port": simulator.host_port, "pid": simulator.process.pid}
    simulator.stop()
    assert simulator.process.stdout is not None
    output = simulator.process.stdout.read()
    simulator.process.stdout.close()
    assert output == f"exchange simulator (SIMULATED): https://{simulator.host_port}\n"


def test_plain_http_and_untrusting_clients_get_nothing(simulator: Simulator) -> None:
    with pytest.raises(requests.RequestException):
        requests.get(f"http://{simulator.host_port}/healthz", timeout=5)
    with requests.Session() as session:
        session.trust_env = False
        with pytest.raises(requests.exceptions.SSLError):
            session.get(f"https://{simulator.host_port}/healthz", timeout=5)


def test_the_certificate_is_good_for_both_names_and_no_other(simulator: Simulator) -> None:
    host, _, port = simulator.host_port.rpartition(":")
    context = ssl.create_default_context(cafile=str(simulator.state_dir / "ca.pem"))
    context.verify_flags |= ssl.VERIFY_X509_STRICT
    for name in ("127.0.0.1", "localhost"):
        with (
            socket.create_connection((host, int(port))) as raw,
            context.wrap_socket(raw, server_hostname=name) as wrapped,
        ):
            assert wrapped.version() in {"TLSv1.2", "TLSv1.3"}
    with (
        socket.create_connection((host, int(port))) as raw,
        pytest.raises(ssl.SSLCertVerificationError),
        context.wrap_socket(raw, server_hostname="api.coinbase.com"),
    ):
        pass


def test_a_body_beyond_the_bound_is_refused_and_the_exchange_goes_on(simulator: Simulator) -> None:
    answer = simulator.request("POST", PREFIX + "/orders", data=b"x" * 2_000_000)
    assert answer.status_code == 413
    assert simulator.request("GET", "/healthz").json() == {"status": "ok"}


@pytest.mark.parametrize("headers", [{}, {"Authorization": "Bearer x"}, {"Authorization": "Basic eDp5"}])
def test_a_stranger_gets_401_and_no_reason(simulator: Simulator, headers: dict[str, str]) -> None:
    answer = simulator.request("GET", PREFIX + "/accounts", headers=headers)
    assert (answer.status_code, answer.text, answer.headers["X-Simulated"]) == (401, "Unauthorized\n", "1")
    assert simulator.request("POST", "/sim/price", json={}, headers=headers).status_code == 401


@pytest.mark.parametrize("method", ["GET", "POST"])
def test_a_token_for_anything_but_this_request_gets_401(simulator: Simulator, method: str) -> None:
    content = json.loads((simulator.state_dir / "cdp_key.json").read_text())
    path = PREFIX + ("/accounts" if method == "GET" else "/orders")
    now_s = int(time.time())

    def status(key: str = content["privateKey"], kid: str = content["name"], **changes: object) -> int:
        claims = {"sub": kid, "iss": "cdp", "nbf": now_s, "exp": now_s + 120}
        claims |= {"uri": f"{method} {simulator.host_port}{path}"} | changes
        token = jwt.encode(claims, key, algorithm="ES256", headers={"kid": kid})
        return simulator.request(method, path + "?limit=1", headers={"Authorization": f"Bearer {token}"}).status_code

    stranger = ec.generate_private_key(ec.SECP256R1()).private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    # A POST without a body gets past the door and is then told what it lacks.
    assert status() == (200 if method == "GET" else 400)
    refused = [
        status(key=stranger.decode()),
        status(kid="organizations/x/apiKeys/y"),
        status(exp=now_s),
        status(nbf=now_s - 600, exp=now_s - 480),
        status(nbf=now_s + 60),
        status(exp=now_s + 86_400),
        status(iss="coinbase"),
        status(sub="someone"),
        status(uri=f"{method} {simulator.host_port}{path}?limit=1"),
        status(uri=f"{method} api.coinbase.com{path}"),
        status(uri=f"DELETE {simulator.host_port}{path}"),
    ]
    assert refused == [401] * 11
    none = jwt.encode({"sub": content["name"]}, "", algorithm="none", headers={"kid": content["name"]})
    answer = simulator.request(method, path, headers={"Authorization": f"Bearer {none}"})
    assert (answer.status_code, answer.text) == (401, "Unauthorized\n")


def test_no_key_is_readable_by_others(simulator: Simulator) -> None:
    keys = ("cdp_key.json", "cdp_key_ed25519.json", "cdp_key_view.json", "cdp_key_transfer.json")
    for name in (*keys, "ca_key.pem", "server_key.pem", "sim_token", "journal.jsonl"):
        assert os.stat(simulator.state_dir / name).st_mode & 0o077 == 0, name


def test_time_passes_without_anybody_asking(tmp_path: Path) -> None:
    """An order that ends at a date is expired by the exchange itself, as its journal shows."""
    with running_simulator(tmp_path, "--history-days", "3") as simulator:
        endpoint = simulator.endpoint
        from coinbase.rest import RESTClient

        assert endpoint.key_secret is not None
        client = RESTClient(endpoint.key_name, endpoint.key_secret.get_secret_value(), base_url=simulator.host_port)
        client.session.trust_env = False
        client.session.verify = str(endpoint.ca_file)
        end_time = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() + 2))
        assert client.limit_order_gtd_buy("gtd", "BTC-USD", "0.01", "1000.00", end_time).success
        deadline = time.monotonic() + 10
        while "EXPIRED" not in (tmp_path / "journal.jsonl").read_text():
            assert time.monotonic() < deadline, "the order was not expired within 10 s"
            time.sleep(0.05)
        client.session.close()
