"""A sweep sent to another Ray cluster: the same table to the byte, brought back through its Jobs API alone."""

from __future__ import annotations

import base64
import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from cluster.cli_remote import look
from cluster.market_data import BarStore
from cluster.ray_jobs import RayJobsError
from cluster.remote_runs import (
    BEGIN,
    END,
    PACKAGED,
    Place,
    entrypoint,
    packaged,
    received,
    sent,
    submit,
    unpacked,
)
from cluster.run_folder import RunError, RunFolder, RunState
from cluster.runs import prepare_run, read_bars, settle_with_job
from jobs import remote
from tests.ray_head import RayHead, ray_head
from tests.run_samples import complete_run, make_spec, make_store

pytestmark = pytest.mark.timeout(600)

WAIT_S = 500.0


@pytest.fixture(scope="module")
def head() -> Iterator[RayHead]:
    with ray_head() as started:
        yield started


def test_a_sweep_sent_elsewhere_comes_back_as_if_computed_here(head: RayHead, tmp_path: Path) -> None:
    store, spec = make_store(tmp_path / "bars"), make_spec()
    here = complete_run(tmp_path / "here", store, spec, "a-run")
    folder = prepare_run(tmp_path / "sent", store, spec, "a-run")
    place = Place(head.dashboard, str(tmp_path / "there"), sys.executable)
    package = packaged(folder, [read_bars(store, spec)])
    job_id = submit(head.jobs, folder, place, package, 0.0, "ann")
    assert submit(head.jobs, folder, place, package, 0.0, "ann") == job_id, "a repeat starts nothing"
    deadline_s = time.monotonic() + WAIT_S
    while not (progress := look(folder, head.jobs)).state.ended:
        assert settle_with_job(folder, None).state is progress.state, "nobody here takes it for lost"
        assert time.monotonic() < deadline_s, head.jobs.logs(job_id)
        time.sleep(0.5)
    assert progress.state is RunState.SUCCEEDED, (progress, head.jobs.logs(job_id))
    assert folder.results_file.read_bytes() == here.results_file.read_bytes()
    assert folder.summary()["top"] == here.summary()["top"]
    assert folder.report_file.stat().st_size > 10_000
    assert folder.equity_file.is_file()
    assert not list(folder.parts_dir.glob("*")), "the parts stay where they were computed"


def test_a_run_that_fails_there_says_why_here(head: RayHead, tmp_path: Path) -> None:
    store = make_store(tmp_path / "bars")
    folder = prepare_run(tmp_path / "sent", store, make_spec(), "bad-run")
    place = Place(head.dashboard, str(tmp_path / "there"), sys.executable)
    submit(head.jobs, folder, place, packaged(folder), 0.0, "ann")  # without bars, and there are none over there
    deadline_s = time.monotonic() + WAIT_S
    while not (progress := look(folder, head.jobs)).state.ended:
        assert time.monotonic() < deadline_s
        time.sleep(0.5)
    assert progress.state is RunState.FAILED
    assert progress.error is not None
    assert "BTC-USD" in progress.error.message


def test_a_manifests_command_carries_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store, spec = make_store(tmp_path / "data" / "bars"), make_spec()
    folder = prepare_run(tmp_path / "here", store, spec, "a-run")
    words = yaml.safe_load(f"a: {json.dumps(entrypoint(Place('', str(tmp_path / 'data')), 'a-run', packaged(folder)))}")
    assert "'" not in words["a"]
    *_, text = words["a"].split()
    monkeypatch.setattr("jobs.sweep.main", lambda arguments: print(arguments) or 0)
    assert remote.main(["run", "--data-dir", str(tmp_path / "data"), "--run-id", "a-run", "--package", text]) == 0
    laid_out = RunFolder(tmp_path / "data" / "runs" / "a-run")
    assert laid_out.spec() == spec
    # The same again goes on; another specification under that name is refused, and nothing is half-done.
    assert remote.main(["run", "--data-dir", str(tmp_path / "data"), "--run-id", "a-run", "--package", text]) == 0
    other = packaged(prepare_run(tmp_path / "here", store, make_spec(seed=5), "b-run"))
    again = base64.b64encode(other).decode()
    assert remote.main(["run", "--data-dir", str(tmp_path / "data"), "--run-id", "a-run", "--package", again]) == 2
    assert laid_out.spec() == spec


@pytest.mark.parametrize("run_id", ["../x", "", "A", "x" * 65, "a b"])
def test_a_run_id_is_no_path(tmp_path: Path, run_id: str) -> None:
    assert remote.main(["send", "--data-dir", str(tmp_path), f"--run-id={run_id}"]) == 2


def test_a_package_has_the_runs_own_bars_and_specification(tmp_path: Path) -> None:
    store, spec = make_store(tmp_path / "bars"), make_spec()
    folder = prepare_run(tmp_path / "runs", store, spec, "a-run")
    files = unpacked(packaged(folder, [read_bars(store, spec)]), "a-run")
    assert files[f"{PACKAGED}/spec.json"] == folder.spec_file.read_bytes()
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(content)
    theirs = BarStore(tmp_path / PACKAGED / "bars")
    assert theirs.data_hash(read_bars(theirs, spec)) == folder.record().data_hash
    assert theirs.ls()[0].sources == store.ls()[0].sources


@pytest.mark.parametrize("damage", ["cut", "flip", "no end", "nothing", "length", "garbage"])
def test_results_that_did_not_come_whole_are_refused(tmp_path: Path, damage: str) -> None:
    folder = complete_run(tmp_path / "runs", make_store(tmp_path / "bars"), make_spec())
    lines = list(sent(folder))
    log = "\n".join(["a line of Ray's own", *lines, "another"])
    assert unpacked(received(log, "a1"), "a1")["results.parquet"] == folder.results_file.read_bytes()
    body = "\n".join(lines[1:-1])
    damaged = {
        "cut": f"{lines[0]}\n{body[:-8]}\n{END}",
        "flip": f"{lines[0]}\n{('B' if body[0] == 'A' else 'A') + body[1:]}\n{END}",
        "no end": f"{lines[0]}\n{body}",
        "nothing": "",
        "length": f"{BEGIN} 1 {lines[0].split()[-1]}\n{body}\n{END}",
        "garbage": f"{lines[0]}\n***\n{END}",
    }[damage]
    with pytest.raises(RunError):
        received(damaged, "a1")


def test_a_cluster_that_is_not_there_is_an_error_in_time(tmp_path: Path) -> None:
    from cluster.ray_jobs import RayJobs

    folder = prepare_run(tmp_path / "runs", make_store(tmp_path / "bars"), make_spec(), "a-run")
    with pytest.raises(RayJobsError):
        submit(RayJobs("127.0.0.1:9"), folder, Place("127.0.0.1:9", "/data"), packaged(folder), 0.0, "ann")
