"""The folder of a session: laid out whole, found, settled; and what its specification refuses."""

from __future__ import annotations

import os
import stat
import time
from pathlib import Path
from typing import Any

import pytest

from cluster.ray_jobs import Job, JobStatus
from cluster.run_folder import RunBusy, RunConflict, RunError, RunState, UnknownRun
from cluster.sessions import (
    SUBMITTING_S,
    SessionFolder,
    list_sessions,
    open_session,
    parse_session,
    prepare_session,
    settle_with_job,
    spec_hash,
)
from strategies.base import SpecError
from strategies.user_file import load, read
from tests.session_parts import SPEC, spec_of
from tests.strategy_files import GOOD, SECTION, written


def prepared(tmp_path: Path, session_id: str | None = "s1", **changes: Any) -> tuple[SessionFolder, bool]:
    return prepare_session(tmp_path / "sessions", spec_of(**changes), session_id, "SIMULATED")


def job(status: JobStatus) -> Job:
    return Job("session-s1", status, "true", "", {}, 1, None, None)


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"strategy": "nobody"}, "strategy"),
        ({"strategy": 3}, "strategy"),
        ({"strategy": "momentum_rotation", "params": {}}, "strategy"),
        ({"strategy": "pairs", "params": {}}, "strategy"),
        ({"strategy": "my_strategy.py", "params": {}}, "strategy"),
        ({"strategy": "my_strategy@0123456789abcdef", "params": {}}, "strategy"),
        ({"product_id": "btc"}, "product_id"),
        ({"granularity": "ONE_WEEK"}, "granularity"),
        ({"params": {"fast": float("nan")}}, "params.fast"),
        ({"params": {"fast": float("inf")}}, "params.fast"),
        ({"params": {"fast": 10**400}}, "params.fast"),
        ({"params": {"fast": True}}, "params.fast"),
        ({"params": {"speed": 1}}, "params.speed"),
        ({"params": {"fast": 30, "slow": 20}}, "params"),
        ({"costs": {"initial_cash": 0}}, "costs.initial_cash"),
        ({"costs": {"fill": "yesterday"}}, "costs.fill"),
        ({"params": {"stop_loss": 0.1}}, "params.stop_loss"),
        ({"params": {"leverage": 2}}, "params.leverage"),
        ({"costs": {"impact": 0.1}}, "costs"),
        ({"costs": {"at_end": "liquidate"}}, "costs"),
        ({"account": "Main"}, "account"),
        ({"account": ""}, "account"),
        ({"trades_as": "a b"}, "trades_as"),
        ({"warmup_bars": 50_001}, "warmup_bars"),
        ({"warmup_bars": 1.5}, "warmup_bars"),
        ({"bars_max": -1}, "bars_max"),
        ({"long_only": "yes"}, "long_only"),
        ({"end": "2026-01-01"}, "end"),
    ],
)
def test_a_specification_that_breaks_a_rule_names_the_field(changes: dict[str, Any], field: str) -> None:
    with pytest.raises(SpecError) as caught:
        parse_session(SPEC | changes)
    assert caught.value.field.startswith(field)


def test_history_is_enough_for_every_window_unless_the_user_says() -> None:
    assert spec_of(warmup_bars=None).warm_up == 350
    assert spec_of(warmup_bars=None, params={"fast": 100, "slow": 400}).warm_up == 2_500
    assert spec_of(warmup_bars=None, params={"fast": 1, "slow": 10_000}).warm_up == 50_000
    assert spec_of(warmup_bars=0).warm_up == 0
    assert spec_of().order_strategy == "sma_cross"
    assert spec_of(trades_as="manual").order_strategy == "manual"


def test_a_folder_is_laid_out_whole_and_for_its_owner_only(tmp_path: Path) -> None:
    folder, repeat = prepared(tmp_path)
    assert not repeat
    assert stat.S_IMODE(folder.path.stat().st_mode) == 0o700
    assert folder.spec() == spec_of()
    assert folder.record().spec_hash == spec_hash(spec_of())
    assert (folder.status().state, folder.status().cash) == (RunState.PENDING, "10000.0")
    assert folder.checkpoint() is None
    folder.write_key("tt_secret")
    assert stat.S_IMODE(folder.key_file.stat().st_mode) == 0o600
    assert "tt_secret" not in folder.entrypoint()
    assert [path.name for path in (tmp_path / "sessions").iterdir() if path.is_dir()] == ["s1"]


def test_a_repeat_is_the_same_session_and_another_specification_is_refused(tmp_path: Path) -> None:
    folder, _ = prepared(tmp_path)
    assert prepared(tmp_path) == (folder, True)
    with pytest.raises(RunConflict, match="session_id"):
        prepared(tmp_path, params={"fast": 6, "slow": 21})


@pytest.mark.parametrize("session_id", ["", "A", "../x", "a" * 41, "a b", "a\n", "ä"])
def test_an_id_that_is_none_is_refused_before_anything_is_written(tmp_path: Path, session_id: str) -> None:
    if session_id:
        with pytest.raises(RunError, match="session_id"):
            prepared(tmp_path, session_id)
    with pytest.raises(RunError):
        open_session(tmp_path / "sessions", session_id)
    assert not (tmp_path / "sessions").exists()


@pytest.mark.parametrize("text", [GOOD, SECTION])
def test_a_users_own_strategy_is_refused_even_where_it_is_loaded(tmp_path: Path, text: str) -> None:
    own = load(read(written(tmp_path, text)))
    with pytest.raises(SpecError, match="a file of your own is for backtests and sweeps") as caught:
        spec_of(strategy=own.name, params={})
    assert caught.value.field == "strategy"


def test_a_strategy_over_several_products_is_refused_with_those_that_can_be_run() -> None:
    with pytest.raises(SpecError, match=r"sma_cross.*a live session trades one product"):
        spec_of(strategy="pairs", params={})


def test_two_sessions_of_one_strategy_on_one_product_are_not_run_at_once(tmp_path: Path) -> None:
    first, _ = prepared(tmp_path)
    with pytest.raises(RunConflict, match="while s1 runs"):
        prepared(tmp_path, "s2", params={"fast": 6, "slow": 21})
    prepared(tmp_path, "s3", product_id="ETH-USD")
    prepared(tmp_path, "s4", trades_as="manual")
    prepared(tmp_path, "s5", account="second")
    first.write_status(first.status().model_copy(update={"state": RunState.STOPPED}))
    prepared(tmp_path, "s2", params={"fast": 6, "slow": 21})
    assert {info.session_id for info in list_sessions(tmp_path / "sessions")} == {"s1", "s2", "s3", "s4", "s5"}


@pytest.mark.parametrize(
    ("state", "age_s", "status", "expected"),
    [
        (RunState.PENDING, 0, None, RunState.PENDING),
        (RunState.PENDING, SUBMITTING_S + 1, None, RunState.FAILED),
        (RunState.RUNNING, 0, None, RunState.FAILED),
        (RunState.RUNNING, 0, JobStatus.RUNNING, RunState.RUNNING),
        (RunState.RUNNING, 0, JobStatus.FAILED, RunState.FAILED),
        (RunState.RUNNING, 0, JobStatus.SUCCEEDED, RunState.FAILED),
        (RunState.RUNNING, 0, JobStatus.STOPPED, RunState.STOPPED),
        (RunState.SUCCEEDED, 0, JobStatus.FAILED, RunState.SUCCEEDED),
    ],
)
def test_a_session_whose_job_is_over_is_settled(
    tmp_path: Path, state: RunState, age_s: float, status: JobStatus | None, expected: RunState
) -> None:
    folder, _ = prepared(tmp_path)
    updated_ns = time.time_ns() - int(age_s * 1e9)
    folder.write_status(folder.status().model_copy(update={"state": state, "updated_ns": updated_ns}))
    assert settle_with_job(folder, job(status) if status else None).state is expected
    assert folder.status().state is expected


def test_a_session_that_a_process_is_at_work_on_is_left_alone(tmp_path: Path) -> None:
    folder, _ = prepared(tmp_path)
    folder.write_status(folder.status().model_copy(update={"state": RunState.RUNNING}))
    with folder.driving():
        assert settle_with_job(folder, job(JobStatus.FAILED)).state is RunState.RUNNING
        with pytest.raises(RunBusy), folder.driving():
            pass
    assert settle_with_job(folder, job(JobStatus.FAILED)).state is RunState.FAILED


def test_damage_is_named_and_spoils_no_other(tmp_path: Path) -> None:
    folder, _ = prepared(tmp_path)
    prepared(tmp_path, "s2", product_id="ETH-USD")
    for path in (folder.status_file, folder.record_file, folder.spec_file):
        kept = path.read_bytes()
        for content in (b"", b"{}", kept[: len(kept) // 2], os.urandom(30)):
            path.write_bytes(content)
            infos = {info.session_id: info for info in list_sessions(tmp_path / "sessions")}
            assert infos["s1"].problem
            assert infos["s2"].problem == ""
        path.write_bytes(kept)
    with pytest.raises(UnknownRun):
        open_session(tmp_path / "sessions", "nobody")
    assert list_sessions(tmp_path / "nowhere") == []
