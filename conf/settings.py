"""The one reader of environment and YAML: a frozen tree of settings, and the risk limits.

Precedence: environment (``DESK_``, nested with ``__``) > the profile's YAML > defaults. Where a desk is running, the
ports and addresses it has written into its state folder come before all of these: they are facts, not wishes.
An unknown key is an error everywhere. Secrets come from a file or a mounted folder, never from YAML, and are
``SecretStr`` so that no log shows them.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict
from pydantic_settings import SettingsError as UnreadableVariable

ROOT: Final = Path(__file__).resolve().parent.parent
CONF_DIR: Final = Path(__file__).resolve().parent
RUNNING_FILE: Final = "desk.json"
SECRETS_FILE: Final = "secrets.env"
SIMULATED: Final = "SIMULATED"
API_KEY_VARIABLE: Final = "DESK_API_KEY"
"""The API key a person gives to the command line; no setting, and passed on to nobody."""

_PLACEHOLDER: Final = re.compile(
    r"<.*>|change[-_ ]?me.*|your[-_ ].*|x{3,}|todo|example.*|placeholder.*|\.{3}", re.IGNORECASE
)


class SettingsError(ValueError):
    """A setting, a limit or a secret is missing, unknown or out of range; the text names field, value and rule."""


Environment = Literal["paper", "sandbox", "live"]


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class RedisSettings(_Section):
    """The ledger's server: one at ``host``, or the primary that ``sentinels`` name.

    With neither the desk starts its own Valkey on ``port`` (0 = a free one). Where answers wait for replicas, an order
    is acknowledged, and sent to the venue, only once ``wait_replicas`` of them have its reservation. All of them: a
    failover loses nothing, and nothing is acknowledged while one is missing. One of two: a crash loses nothing and
    orders go on after seconds; a failover of a primary that lives (SENTINEL FAILOVER) loses what it took meanwhile.
    """

    host: str | None = None
    port: int = Field(0, ge=0, le=65535)
    sentinels: tuple[str, ...] = Field((), max_length=15, description="host:port of each Sentinel")
    sentinel_name: str = Field("ledger", min_length=1, max_length=100, description="what Sentinel calls the primary")
    database: int = Field(0, ge=0, le=15)
    tls: bool = False
    timeout_s: float = Field(1.0, gt=0, le=30)
    connect_timeout_s: float = Field(1.0, gt=0, le=30)
    maxmemory_mb: int = Field(512, ge=16)
    appendfsync: Literal["always", "everysec"] = "always"
    wait_replicas: int | None = Field(
        None,
        ge=0,
        le=16,
        description="replicas that must have a write before it is answered; absent = 1 with Sentinels",
    )
    wait_timeout_ms: int = Field(400, ge=1, le=29_999, description="how long they may take; below timeout_s")
    wait_aof: bool = Field(
        False,
        description="wait for disks too, the primary's and theirs; with appendfsync everysec that takes up to a second",
    )

    @property
    def embedded(self) -> bool:
        """Whether the desk starts its own server."""
        return self.host is None and not self.sentinels

    @property
    def acknowledgements(self) -> int:
        """How many replicas must have a write before it is answered."""
        return self.wait_replicas or 0

    @property
    def sentinel_addresses(self) -> list[tuple[str, int]]:
        """Host and port of each Sentinel."""
        return [(host.strip("[]"), int(port)) for host, _, port in (name.rpartition(":") for name in self.sentinels)]

    @field_validator("sentinels")
    @classmethod
    def _addresses(cls, sentinels: tuple[str, ...]) -> tuple[str, ...]:
        for name in sentinels:
            host, _, port = name.rpartition(":")
            if not host or not re.fullmatch(r"[1-9][0-9]{0,4}", port) or int(port) > 65535 or re.search(r"\s", host):
                raise ValueError(f"expected host:port, was {name!r}")
        if len(set(sentinels)) < len(sentinels):
            raise ValueError("each Sentinel is named once")
        return sentinels

    @model_validator(mode="after")
    def _consistent(self) -> RedisSettings:
        if self.sentinels and self.host is not None:
            raise ValueError("host and sentinels: one of them; the primary's address comes from the Sentinels")
        if self.sentinels and self.wait_replicas is None:
            raise ValueError("wait_replicas: named with sentinels; as many as there are replicas, to lose nothing")
        if self.embedded and self.acknowledgements:
            raise ValueError("wait_replicas: the desk's own server has none; name host or sentinels")
        waits = bool(self.acknowledgements) + self.wait_aof
        if waits * self.wait_timeout_ms >= self.timeout_s * 1000:
            times = "twice " if waits > 1 else ""
            raise ValueError(f"wait_timeout_ms: {times}{self.wait_timeout_ms} ms must be below timeout_s")
        return self


class RaySettings(_Section):
    """Ray on this machine; 0 = a free port. With ``address`` an existing cluster's Jobs API is used instead."""

    address: str | None = None
    gcs_port: int = Field(0, ge=0, le=65535)
    dashboard_port: int = Field(0, ge=0, le=65535)
    num_cpus: int = Field(0, ge=0, description="logical CPUs Ray may use; 0 = the machine's and one more")
    object_store_mb: int = Field(512, ge=80)
    driver_num_cpus: float = Field(0.0, ge=0, le=64, description="CPUs of a job's driver; above 0 it leaves the head")


class QueueSettings(_Section):
    """How many runs are at work at once; the others wait their turn."""

    # A job's supervisor and driver take some 300 MB together on the head.
    runs_at_once_max: int = Field(4, ge=1, le=1_000, description="runs at work, of all users together")
    runs_per_user_max: int = Field(2, ge=1, le=1_000, description="runs at work of one user")
    waiting_per_user_max: int = Field(100, ge=1, le=100_000, description="waiting runs of one user")


class ServeSettings(_Section):
    """Where the applications answer over HTTP; 0 = a free port."""

    http_port: int = Field(8000, ge=0, le=65535)
    orders_port: int | None = Field(
        None, ge=0, le=65535, description="the risk replicas' own port; absent = none (the embedded desk opens one)"
    )


class VenueSettings(_Section):
    """The exchange orders go to and bars come from."""

    kind: Literal["simulator", "coinbase"] = "simulator"
    host_port: str | None = None
    timeout_s: float = Field(5.0, gt=0, le=60)
    requests_per_s: float = Field(25.0, gt=0, le=1000)
    cancel_share: float = Field(0.2, ge=0, lt=1, description="part of the requests that only cancels may use")
    allow_transfer_key: bool = Field(False, description="take a key that may move funds; one without is safer")

    @property
    def environment(self) -> Environment:
        """Where orders end: paper (the simulator), sandbox (Coinbase's canned answers) or live (real money)."""
        if self.kind == "simulator":
            return "paper"
        return "sandbox" if (self.host_port or "").startswith("api-sandbox.") else "live"


class SimulatorSettings(_Section):
    """The exchange simulator the embedded desk starts; 0 = a free port."""

    port: int = Field(0, ge=0, le=65535)
    seed: int = Field(7, ge=0)
    history_days: int = Field(1200, ge=1, le=20_000)
    cash_usd: int = Field(1_000_000, ge=0, le=1_000_000_000)


class ExecutionSettings(_Section):
    """Rhythm of the execution service."""

    account: str = "main"
    reference_interval_s: float = Field(1.0, gt=0, le=60)
    poll_interval_s: float = Field(0.25, gt=0, le=60)
    reconcile_interval_s: float = Field(30.0, gt=0, le=600)
    stream: bool = Field(True, description="listen to the venue's channels; without, orders and prices are only polled")
    deadman_s: float = Field(15.0, ge=2, le=600, description="after this silence of execution all orders are cancelled")


class Secrets(_Section):
    """Everything that must not be seen; each may be absent, and absent means absent."""

    redis_password: SecretStr | None = None
    sentinel_password: SecretStr | None = None
    api_key_pepper: SecretStr | None = None
    audit_key: SecretStr | None = None
    coinbase_key_name: SecretStr | None = None
    coinbase_private_key: SecretStr | None = None


class Settings(BaseSettings):
    """All settings of a process."""

    model_config = SettingsConfigDict(
        env_prefix="DESK_", env_nested_delimiter="__", frozen=True, extra="forbid", env_ignore_empty=True
    )

    profile: Literal["paper", "live"] = "paper"
    state_dir: Path = ROOT / ".desk"
    redis: RedisSettings = RedisSettings()
    ray: RaySettings = RaySettings()
    queue: QueueSettings = QueueSettings()
    serve: ServeSettings = ServeSettings()
    venue: VenueSettings = VenueSettings()
    simulator: SimulatorSettings = SimulatorSettings()
    execution: ExecutionSettings = ExecutionSettings()
    limits_file: Path = CONF_DIR / "limits.yaml"
    bars_dir: Path | None = None
    runs_dir: Path | None = None
    secrets_dir: Path | None = Field(None, description="a folder with one file a secret, as Kubernetes mounts them")

    @property
    def bars_path(self) -> Path:
        """Root of the bar store."""
        return self.bars_dir or self.state_dir / "bars"

    @property
    def runs_path(self) -> Path:
        """Parent of all run folders."""
        return self.runs_dir or self.state_dir / "runs"

    @property
    def data_source(self) -> str:
        """What every screen, file and report calls the origin of prices and fills."""
        return SIMULATED if self.venue.kind == "simulator" else "coinbase"

    @property
    def api_url(self) -> str:
        """Base address of the Serve applications on this machine."""
        return f"http://127.0.0.1:{self.serve.http_port}"

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Environment over what ``load_settings`` read from files."""
        return env_settings, init_settings


class _SettledSettings(Settings):
    """Settings that no longer look at the environment."""

    @classmethod
    def settings_customise_sources(
        cls, settings_cls: type[BaseSettings], init_settings: PydanticBaseSettingsSource, *_: Any, **__: Any
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        return (init_settings,)


def load_settings(profile: str | None = None, state_dir: Path | None = None) -> Settings:
    """Read the settings of this process.

    ``profile`` and ``state_dir`` override ``DESK_PROFILE`` and ``DESK_STATE_DIR``. Raises ``SettingsError`` naming
    the field, the value and the rule.
    """
    _refuse_unknown_environment(os.environ)
    folder = (state_dir or Path(os.environ.get("DESK_STATE_DIR") or ROOT / ".desk")).resolve()
    running = read_mapping(folder / RUNNING_FILE).get("settings", {})
    if not isinstance(running, dict):
        raise SettingsError(f"{folder / RUNNING_FILE}: settings: expected a mapping, was {running!r}")
    name = profile or running.get("profile") or os.environ.get("DESK_PROFILE") or "paper"
    path = CONF_DIR / f"{name}.yaml"
    if not path.is_file():
        known = ", ".join(sorted(p.stem for p in CONF_DIR.glob("*.yaml") if p.stem in {"paper", "live"}))
        raise SettingsError(f"profile: {name!r} is not a profile; known: {known}")
    try:
        settings = Settings(**read_mapping(path) | {"profile": name, "state_dir": folder})
        # What the caller names beats the environment, so that one process can look at another desk.
        facts = {**running, "profile": name, "state_dir": folder}
        return _fenced(_SettledSettings(**_merge(settings.model_dump(), facts)))
    except ValidationError as error:
        raise SettingsError(describe(error)) from None
    except UnreadableVariable as error:
        # Its text names the section only, which is the variable's name without the prefix.
        raise SettingsError(f"environment: {error}; a whole section is written as JSON") from None


def load_secrets(settings: Settings) -> Secrets:
    """Read the secrets: a mounted folder, else the state folder's ``secrets.env``, else ``conf/secrets.env``.

    Raises ``SettingsError`` where a file can be read by others, holds an unknown key or a placeholder.
    """
    found: dict[str, str] = {}
    for path in (CONF_DIR / SECRETS_FILE, settings.state_dir / SECRETS_FILE):
        if path.is_file():
            found |= _read_secrets_file(path)
    if settings.secrets_dir is not None:
        found |= _read_secrets_folder(settings.secrets_dir)
    try:
        return Secrets(**{key: SecretStr(value) for key, value in found.items()})
    except ValidationError as error:
        raise SettingsError("secrets: unknown key " + ", ".join(str(e["loc"][0]) for e in error.errors())) from None


def environment_api_key() -> SecretStr | None:
    """The API key in the environment, where there is one."""
    text = os.environ.get(API_KEY_VARIABLE, "").strip()
    return SecretStr(text) if text else None


def write_secrets(path: Path, values: Mapping[str, str]) -> None:
    """Write a secrets file that only its owner can read, in one step; line breaks in a value become ``\\n``."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w") as file:
        os.fchmod(file.fileno(), 0o600)
        file.writelines("{}={}\n".format(key.upper(), value.replace("\n", "\\n")) for key, value in values.items())
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def describe(error: ValidationError) -> str:
    """One clause a broken rule: field, rule and value."""
    lines = []
    for item in error.errors():
        field = ".".join(str(part) for part in item["loc"])
        value = "" if item["type"] in {"missing", "extra_forbidden"} else f", was {item['input']!r}"
        lines.append(f"{field}: {item['msg']}{value}")
    return "; ".join(lines)


def read_mapping(path: Path) -> dict[str, Any]:
    """A YAML (or JSON) file that holds a mapping; an absent or empty file is an empty one."""
    try:
        loaded = yaml.load(path.read_text(encoding="utf-8"), Loader=_StrictLoader)  # noqa: S506 - a SafeLoader
    except FileNotFoundError:
        return {}
    except (yaml.YAMLError, OSError, ValueError, RecursionError) as error:
        raise SettingsError(f"{path}: not readable as YAML: {error}") from error
    if loaded is None:
        return {}
    if not isinstance(loaded, dict):
        raise SettingsError(f"{path}: expected a mapping, was {type(loaded).__name__}")
    return loaded


class _StrictLoader(yaml.SafeLoader):
    """YAML without its traps: a key stands once; 12:30, 010 and 1_0 are no numbers, yes and on no booleans."""

    yaml_implicit_resolvers = {  # noqa: RUF012 - the name and the kind are PyYAML's
        first: [(tag, rule) for tag, rule in rules if tag.rpartition(":")[2] not in {"int", "float", "bool"}]
        for first, rules in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        names = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        if repeated := next((name for name in names if names.count(name) > 1), None):
            raise yaml.constructor.ConstructorError(None, None, f"{repeated} is named twice", node.start_mark)
        return super().construct_mapping(node, deep)


for _tag, _rule in (
    ("int", r"[-+]?(0|[1-9][0-9]*)"),
    ("float", r"[-+]?([0-9]+\.[0-9]*|\.[0-9]+|[0-9]+(?=[eE]))([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)"),
    ("bool", "true|True|TRUE|false|False|FALSE"),
):
    _StrictLoader.add_implicit_resolver(
        f"tag:yaml.org,2002:{_tag}", re.compile(rf"(?:{_rule})\Z"), list("-+.0123456789tTfF")
    )


def _refuse_unknown_environment(environment: Mapping[str, str]) -> None:
    for name in environment:
        section = name.upper().removeprefix("DESK_").split("__")[0].lower()
        known = section in Settings.model_fields or name == API_KEY_VARIABLE
        if name.upper().startswith("DESK_") and not known:
            raise SettingsError(f"{name}: not a setting (environment); see conf/settings.py")


def _fenced(settings: Settings) -> Settings:
    """Whoever works with the paper profile must never find out afterwards that it was real money."""
    if (settings.profile == "live") != (settings.venue.environment == "live"):
        where = f"a venue whose orders are {settings.venue.environment}"
        raise SettingsError(f"profile: {settings.profile} does not go with {where} (venue.kind, venue.host_port)")
    return settings


def _merge(base: dict[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in over.items():
        both = isinstance(value, Mapping) and isinstance(merged.get(key), dict)
        merged[key] = _merge(merged[key], value) if both else value
    return merged


def _read_secrets_file(path: Path) -> dict[str, str]:
    mode = stat.S_IMODE(path.stat().st_mode)
    if mode & 0o077:
        raise SettingsError(f"{path}: mode {mode:04o} lets others read it; expected 0600 (chmod 600 {path.name})")
    secrets: dict[str, str] = {}
    for number, line in enumerate(_secret_text(path).splitlines(), 1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        key, separator, value = (part.strip() for part in line.partition("="))
        if not separator:
            raise SettingsError(f"{path} line {number}: expected KEY=value")
        if key.lower() in secrets:
            raise SettingsError(f"{path} line {number}: {key} is named twice")
        secrets[key.lower()] = _real_secret(f"{path.name} {key}", _unquoted(value).replace("\\n", "\n"))
    return {name: value for name, value in secrets.items() if value}


def _read_secrets_folder(folder: Path) -> dict[str, str]:
    if not folder.is_dir():
        raise SettingsError(f"secrets_dir: {folder} is not a folder")
    files = [p for p in sorted(folder.iterdir()) if p.is_file() and not p.name.startswith(".")]
    found = {p.name.lower(): _secret_text(p).strip() for p in files}
    return {name: _real_secret(name, value) for name, value in found.items() if value}


def _secret_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise SettingsError(f"{path}: not readable: {error.strerror}") from None
    except UnicodeDecodeError:
        # The error itself would show bytes of the secret.
        raise SettingsError(f"{path}: not UTF-8 text") from None


def _unquoted(value: str) -> str:
    quoted = len(value) >= 2 and value[0] == value[-1] and value[0] in "\"'"
    return value[1:-1] if quoted else value


def _real_secret(name: str, value: str) -> str:
    if _PLACEHOLDER.fullmatch(value):
        raise SettingsError(f"{name}: still a placeholder; put the real value in or leave it empty")
    return value
