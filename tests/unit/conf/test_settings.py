"""The one reader of environment, profiles and secrets: what wins, what is refused, and that no secret shows."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

import conf.settings
from conf.settings import (
    API_KEY_VARIABLE,
    Secrets,
    Settings,
    SettingsError,
    environment_api_key,
    load_secrets,
    load_settings,
    read_mapping,
    write_secrets,
)

PAPER = "venue: {kind: simulator}\nserve: {http_port: 7001}\n"


@pytest.fixture(autouse=True)
def conf_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A conf folder of the test's own, and an environment without a single setting."""
    for name in list(os.environ):
        if name.upper().startswith("DESK_"):
            monkeypatch.delenv(name)
    folder = tmp_path / "conf"
    folder.mkdir()
    (folder / "paper.yaml").write_text(PAPER)
    (folder / "live.yaml").write_text("venue: {kind: coinbase}\n")
    (folder / "limits.yaml").write_text("accounts: {}\n")
    monkeypatch.setattr(conf.settings, "CONF_DIR", folder)
    return folder


@pytest.fixture
def state(tmp_path: Path) -> Path:
    folder = tmp_path / "state"
    folder.mkdir()
    return folder


def running(state: Path, **settings: Any) -> None:
    """What a running desk has written about itself."""
    (state / "desk.json").write_text(json.dumps({"settings": settings, "processes": []}))


def refused(state: Path, **arguments: Any) -> str:
    with pytest.raises(SettingsError) as caught:
        load_settings(state_dir=state, **arguments)
    return str(caught.value)


# -- precedence --------------------------------------------------------------------------------------------------------


def test_the_profile_beats_the_default(state: Path) -> None:
    assert load_settings(state_dir=state).serve.http_port == 7001


def test_the_environment_beats_the_profile(state: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DESK_SERVE__HTTP_PORT", "7002")
    assert load_settings(state_dir=state).serve.http_port == 7002


def test_a_running_desk_beats_the_environment(state: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DESK_SERVE__HTTP_PORT", "7002")
    monkeypatch.setenv("DESK_PROFILE", "live")
    running(state, profile="paper", serve={"http_port": 7003}, redis={"port": 7004})
    settings = load_settings(state_dir=state)
    assert (settings.profile, settings.serve.http_port, settings.redis.port) == ("paper", 7003, 7004)


def test_a_running_desk_leaves_alone_what_it_does_not_name(state: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DESK_REDIS__TIMEOUT_S", "2.5")
    running(state, redis={"port": 7004})
    settings = load_settings(state_dir=state)
    assert (settings.redis.port, settings.redis.timeout_s) == (7004, 2.5)


def test_what_the_caller_names_beats_everything(state: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DESK_PROFILE", "paper")
    monkeypatch.setenv("DESK_STATE_DIR", str(tmp_path / "other"))
    settings = load_settings("live", state)
    assert (settings.profile, settings.venue.kind, settings.state_dir) == ("live", "coinbase", state)


def test_the_environment_names_profile_and_state_folder(state: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DESK_PROFILE", "live")
    monkeypatch.setenv("DESK_STATE_DIR", str(state))
    settings = load_settings()
    assert (settings.profile, settings.state_dir) == ("live", state)


def test_a_persons_api_key_in_the_environment_is_no_setting_and_not_shown(
    state: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(API_KEY_VARIABLE, " tt_key ")
    key = environment_api_key()
    assert key is not None
    assert key.get_secret_value() == "tt_key"
    assert "tt_key" not in f"{load_settings(state_dir=state)!r} {key!r}"
    monkeypatch.setenv(API_KEY_VARIABLE, " ")
    assert environment_api_key() is None


def test_an_empty_variable_is_an_absent_one(state: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DESK_SERVE__HTTP_PORT", "")
    monkeypatch.setenv("DESK_PROFILE", "")
    assert load_settings(state_dir=state).serve.http_port == 7001


def test_a_whole_section_may_be_given_as_json(state: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DESK_REDIS", '{"host": "ledger.example", "port": 6379}')
    assert load_settings(state_dir=state).redis.host == "ledger.example"


def test_reading_settings_twice_gives_equal_ones(state: Path) -> None:
    assert load_settings(state_dir=state) == load_settings(state_dir=state)


def test_settings_cannot_be_changed(state: Path) -> None:
    settings = load_settings(state_dir=state)
    with pytest.raises(ValueError, match="frozen"):
        settings.redis.port = 1  # type: ignore[misc]


# -- refused -----------------------------------------------------------------------------------------------------------

ENVIRONMENT: list[tuple[str, str, str]] = [
    # variable, value, what the error names
    ("DESK_REDIS_PORT", "6379", "DESK_REDIS_PORT"),
    ("DESK_REDIZ__PORT", "6379", "DESK_REDIZ__PORT"),
    ("desk_rediz__port", "6379", "desk_rediz__port"),
    ("DESK_", "1", "DESK_"),
    ("DESK___PORT", "1", "DESK___PORT"),
    ("DESK_REDIS__PORTS", "6379", "redis.ports"),
    ("DESK_REDIS__PORT", "6379a", "redis.port"),
    ("DESK_REDIS__PORT", "-1", "redis.port"),
    ("DESK_REDIS__PORT", "65536", "redis.port"),
    ("DESK_REDIS__PORT", "1.5", "redis.port"),
    ("DESK_REDIS__PORT__X", "1", "redis.port"),
    ("DESK_REDIS__TIMEOUT_S", "nan", "redis.timeout_s"),
    ("DESK_REDIS__TIMEOUT_S", "inf", "redis.timeout_s"),
    ("DESK_REDIS__TIMEOUT_S", "0", "redis.timeout_s"),
    ("DESK_REDIS__TLS", "perhaps", "redis.tls"),
    ("DESK_REDIS__APPENDFSYNC", "no", "redis.appendfsync"),
    ("DESK_REDIS", "6379", "redis"),
    ("DESK_REDIS", "{'port': 1}", "redis"),
    ("DESK_REDIS", "[1]", "redis"),
    ("DESK_VENUE__KIND", "binance", "venue.kind"),
    ("DESK_PROFILE", "production", "production"),
    ("DESK_PROFILE", "limits", "profile"),
    ("DESK_PROFILE", "../conf/paper", "profile"),
]


@pytest.mark.parametrize(("name", "value", "named"), ENVIRONMENT)
def test_a_variable_that_means_nothing_is_refused_by_name(
    state: Path, monkeypatch: pytest.MonkeyPatch, name: str, value: str, named: str
) -> None:
    monkeypatch.setenv(name, value)
    assert named in refused(state)


def test_variables_of_others_do_not_matter(state: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DESKTOP_SESSION", "x")
    monkeypatch.setenv("XDESK_REDIS__PORTS", "x")
    load_settings(state_dir=state)


PROFILES: list[tuple[str, str]] = [
    # the profile's YAML, what the error names
    ("venue: {kind: binance}", "venue.kind"),
    ("venues: {kind: simulator}", "venues"),
    ("venue: {kinds: simulator}", "venue.kinds"),
    ("venue: simulator", "venue"),
    ("redis: {port: 6379, port: 6380}", "port is named twice"),
    ("venue: {kind: simulator}\nvenue: {kind: coinbase}", "venue is named twice"),
    ("redis: {port: 12:30}", "redis.port"),
    ("redis: {port: 0x10}", "redis.port"),
    ("- venue", "expected a mapping"),
    ("just text", "expected a mapping"),
    ("venue: {kind: simulator", "paper.yaml"),
    ("venue: !!python/object:os.system {}", "paper.yaml"),
    ("venue: [\x00]", "paper.yaml"),
    ("a: " + "[" * 5000, "paper.yaml"),
]


@pytest.mark.parametrize(("text", "named"), PROFILES, ids=range(len(PROFILES)))
def test_a_profile_that_means_nothing_is_refused(state: Path, conf_dir: Path, text: str, named: str) -> None:
    (conf_dir / "paper.yaml").write_text(text)
    assert named in refused(state)


def test_an_unknown_profile_is_refused_with_those_there_are(state: Path) -> None:
    assert refused(state, profile="paperr") == "profile: 'paperr' is not a profile; known: live, paper"


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ('{"settings": {"redis": {"port": "x"}}}', "redis.port"),
        ('{"settings": {"rediz": {"port": 1}}}', "rediz"),
        ('{"settings": {"redis": [1]}}', "redis"),
        ('{"settings": ["redis"]}', "desk.json"),
        ('{"settings": {"redis": {"po', "desk.json"),
        ("[]", "desk.json"),
    ],
)
def test_a_damaged_state_folder_is_an_error_that_names_the_file_or_field(state: Path, text: str, named: str) -> None:
    (state / "desk.json").write_text(text)
    assert named in refused(state)


def test_a_file_that_is_a_folder_is_an_error_that_names_it(state: Path) -> None:
    (state / "desk.json").mkdir()
    assert "desk.json" in refused(state)


# -- YAML without its traps --------------------------------------------------------------------------------------------

SCALARS: list[tuple[str, object]] = [
    # as written, as read
    ("1", 1),
    ("-12", -12),
    ("0", 0),
    ("0.5", 0.5),
    ("1e3", 1000.0),
    ("true", True),
    ("False", False),
    ("null", None),
    ("yes", "yes"),
    ("on", "on"),
    ("010", "010"),
    ("0x1F", "0x1F"),
    ("1_000", "1_000"),
    ("12:30", "12:30"),
    ("12:30.5", "12:30.5"),
    ("'1'", "1"),
    ("1\u0660", "1\u0660"),
]


@pytest.mark.parametrize(("text", "value"), SCALARS)
def test_only_what_looks_like_a_number_is_one(tmp_path: Path, text: str, value: object) -> None:
    (tmp_path / "x.yaml").write_text(f"a: {text}\n")
    assert read_mapping(tmp_path / "x.yaml") == {"a": value}


def test_an_absent_and_an_empty_file_are_empty_mappings(tmp_path: Path) -> None:
    (tmp_path / "x.yaml").write_text("# nothing\n")
    assert read_mapping(tmp_path / "x.yaml") == read_mapping(tmp_path / "y.yaml") == {}


def test_a_merged_mapping_may_be_overridden(tmp_path: Path) -> None:
    (tmp_path / "x.yaml").write_text("a: &a {p: 1, q: 2}\nb: {<<: *a, q: 3}\n")
    assert read_mapping(tmp_path / "x.yaml")["b"] == {"p": 1, "q": 3}


# -- secrets -----------------------------------------------------------------------------------------------------------


def settings_of(state: Path, **changed: Any) -> Settings:
    return load_settings(state_dir=state).model_copy(update=changed)


def secrets_file(folder: Path, text: str | bytes, mode: int = 0o600) -> None:
    path = folder / "secrets.env"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    path.chmod(mode)


def secrets_refused(settings: Settings) -> str:
    with pytest.raises(SettingsError) as caught:
        load_secrets(settings)
    return str(caught.value)


def revealed(secret: SecretStr | None) -> str | None:
    return None if secret is None else secret.get_secret_value()


def test_absent_secrets_are_none(state: Path) -> None:
    assert load_secrets(settings_of(state)) == Secrets()


FILE_LINES: list[tuple[str, str | None]] = [
    # a line of secrets.env, the secret
    ("REDIS_PASSWORD=s3cret", "s3cret"),
    ("redis_password = s3cret ", "s3cret"),
    ("REDIS_PASSWORD=a=b==", "a=b=="),
    ("REDIS_PASSWORD='s3 cret'", "s3 cret"),
    ('REDIS_PASSWORD="s3cret"', "s3cret"),
    ("REDIS_PASSWORD='s3cret\"", "'s3cret\""),
    ("REDIS_PASSWORD=one\\ntwo", "one\ntwo"),
    ("REDIS_PASSWORD=", None),
    ("REDIS_PASSWORD=  ", None),
    ("REDIS_PASSWORD=''", None),
    ("# REDIS_PASSWORD=s3cret", None),
    ("\n\n   \n", None),
]


@pytest.mark.parametrize(("line", "secret"), FILE_LINES)
def test_a_line_of_the_file_is_read(state: Path, line: str, secret: str | None) -> None:
    secrets_file(state, line)
    assert revealed(load_secrets(settings_of(state)).redis_password) == secret


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o644, 0o660, 0o666, 0o610, 0o777])
def test_a_file_others_can_read_is_refused_with_the_remedy(state: Path, mode: int) -> None:
    secrets_file(state, "REDIS_PASSWORD=s3cret", mode)
    text = secrets_refused(settings_of(state))
    assert f"mode {mode:04o}" in text
    assert "chmod 600" in text


@pytest.mark.parametrize("mode", [0o600, 0o400, 0o700])
def test_a_file_only_its_owner_can_read_is_taken(state: Path, mode: int) -> None:
    secrets_file(state, "REDIS_PASSWORD=s3cret", mode)
    assert revealed(load_secrets(settings_of(state)).redis_password) == "s3cret"


PLACEHOLDERS = [
    "<your key>",
    "changeme",
    "CHANGE_ME",
    "change-me-now",
    "your-key-here",
    "xxxxx",
    "TODO",
    "example",
    "...",
]


@pytest.mark.parametrize("value", [*PLACEHOLDERS, *(f'"{value}"' for value in PLACEHOLDERS)])
def test_a_placeholder_is_refused_by_name_and_not_shown(state: Path, value: str) -> None:
    secrets_file(state, f"API_KEY_PEPPER={value}")
    assert secrets_refused(settings_of(state)).startswith("secrets.env API_KEY_PEPPER: still a placeholder")


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("REDIS_PASWORD=hunter2", "redis_pasword"),
        ("export REDIS_PASSWORD=hunter2", "redis_password"),
        ("REDIS_PASSWORD hunter2", "line 1"),
        ("REDIS_PASSWORD=hunter2\nredis_password=hunter3", "line 2"),
        (b"REDIS_PASSWORD=hunter2\xff", "secrets.env"),
    ],
)
def test_a_file_that_cannot_be_meant_is_refused_without_showing_a_secret(
    state: Path, text: str | bytes, named: str
) -> None:
    secrets_file(state, text)
    error = secrets_refused(settings_of(state))
    assert named in error
    assert "hunter" not in error


def test_the_state_folder_beats_the_conf_folder_and_a_mounted_one_beats_both(
    state: Path, conf_dir: Path, tmp_path: Path
) -> None:
    mounted = tmp_path / "mounted"
    mounted.mkdir()
    secrets_file(conf_dir, "REDIS_PASSWORD=one\nAPI_KEY_PEPPER=one\nCOINBASE_KEY_NAME=one")
    secrets_file(state, "REDIS_PASSWORD=two\nAPI_KEY_PEPPER=two")
    (mounted / "REDIS_PASSWORD").write_text("three\n")
    secrets = load_secrets(settings_of(state, secrets_dir=mounted))
    shown = [revealed(getattr(secrets, name)) for name in ("redis_password", "api_key_pepper", "coinbase_key_name")]
    assert shown == ["three", "two", "one"]


def test_a_mounted_folder_is_read_as_kubernetes_lays_it_out(state: Path, tmp_path: Path) -> None:
    mounted, data = tmp_path / "mounted", tmp_path / "mounted" / "..2026_11_22"
    data.mkdir(parents=True)
    (data / "redis_password").write_text("s3cret\n")
    (data / "coinbase_private_key").write_text("line one\nline two\n")
    (mounted / "..data").symlink_to(data.name)
    for name in ("redis_password", "coinbase_private_key"):
        (mounted / name).symlink_to(f"..data/{name}")
    secrets = load_secrets(settings_of(state, secrets_dir=mounted))
    assert revealed(secrets.redis_password) == "s3cret"
    assert revealed(secrets.coinbase_private_key) == "line one\nline two"


@pytest.mark.parametrize(
    ("name", "content", "named"),
    [
        ("redis_pasword", b"hunter2", "redis_pasword"),
        ("redis_password", b"changeme", "redis_password"),
        ("redis_password", b"hunter2\xff", "redis_password"),
    ],
)
def test_a_mounted_file_is_held_to_the_same_rules(
    state: Path, tmp_path: Path, name: str, content: bytes, named: str
) -> None:
    (tmp_path / "mounted").mkdir()
    (tmp_path / "mounted" / name).write_bytes(content)
    error = secrets_refused(settings_of(state, secrets_dir=tmp_path / "mounted"))
    assert named in error
    assert "hunter" not in error


def test_an_empty_mounted_file_is_an_absent_secret(state: Path, tmp_path: Path) -> None:
    (tmp_path / "redis_password").write_text("\n")
    settings = settings_of(state, secrets_dir=tmp_path / "empty")
    (tmp_path / "empty").mkdir()
    (tmp_path / "redis_password").rename(tmp_path / "empty" / "redis_password")
    assert load_secrets(settings).redis_password is None


def test_a_mounted_folder_that_is_not_there_is_an_error(state: Path, tmp_path: Path) -> None:
    assert "secrets_dir" in secrets_refused(settings_of(state, secrets_dir=tmp_path / "nowhere"))


def test_written_secrets_are_private_and_come_back_whole(state: Path) -> None:
    path = state / "secrets.env"
    path.write_text("an older file that all could read")
    path.chmod(0o644)
    values = {"redis_password": "a=b # 'c'", "coinbase_private_key": "-----BEGIN-----\nMHcC\n-----END-----\n"}
    write_secrets(path, values)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    secrets = load_secrets(settings_of(state))
    assert revealed(secrets.redis_password) == values["redis_password"]
    assert revealed(secrets.coinbase_private_key) == values["coinbase_private_key"]
    assert [entry.name for entry in state.iterdir()] == ["secrets.env"]


# -- nothing secret shows ----------------------------------------------------------------------------------------------


def test_no_text_of_secrets_or_settings_shows_a_secret(state: Path) -> None:
    secrets_file(state, "REDIS_PASSWORD=hunter2\nAPI_KEY_PEPPER=hunter2\nCOINBASE_PRIVATE_KEY=hunter2")
    settings = settings_of(state)
    secrets = load_secrets(settings)
    assert revealed(secrets.redis_password) == "hunter2"
    for shown in (secrets, settings):
        for text in (repr(shown), str(shown), f"{shown}", shown.model_dump_json(), str(shown.model_dump())):
            assert "hunter2" not in text


@pytest.mark.parametrize("value", ["hunter2", '{"password": "hunter2"}', '{"port": {"hunter2": 1}'])
def test_a_secret_put_where_none_belongs_is_not_repeated_in_the_error(
    state: Path, monkeypatch: pytest.MonkeyPatch, value: str
) -> None:
    monkeypatch.setenv("DESK_REDIS", value)
    assert "hunter2" not in refused(state)
    monkeypatch.delenv("DESK_REDIS")
    monkeypatch.setenv("DESK_REDIS__PASSWORD", value)
    assert "hunter2" not in refused(state)


def test_importing_the_settings_reads_nothing() -> None:
    program = "import os; os.environ['DESK_NONSENSE'] = '1'; import conf.settings, conf.limits"
    subprocess.run([sys.executable, "-c", program], check=True, cwd=conf.settings.ROOT)
