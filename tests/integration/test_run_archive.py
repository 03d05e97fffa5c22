"""Runs put away and brought back: the same files to the byte, and nothing lost whatever is damaged or in the way."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from cluster.run_archive import FOLDER, RunArchive
from cluster.run_folder import RunBusy, RunError, RunFolder, RunState
from cluster.run_queue import RunQueue
from cluster.runs import list_runs, prepare_run
from conf.settings import QueueSettings
from tests.run_samples import make_store, one_set_spec


@pytest.fixture
def runs_dir(tmp_path: Path) -> Path:
    return tmp_path / "runs"


@pytest.fixture
def ended(tmp_path: Path, runs_dir: Path) -> RunFolder:
    return make_run(tmp_path, runs_dir, "a-run")


def make_run(tmp_path: Path, runs_dir: Path, name: str, state: RunState = RunState.SUCCEEDED) -> RunFolder:
    folder = prepare_run(runs_dir, make_store(tmp_path / "bars"), one_set_spec(), name)
    folder.write_progress(folder.progress().model_copy(update={"state": state}))
    folder.report_file.write_text("<html>" + "x" * 100_000)
    (folder.parts_dir / "deep").mkdir()
    (folder.parts_dir / "deep" / "empty").touch()
    return folder


def digests(folder: Path) -> dict[str, str]:
    files = [path for path in folder.rglob("*") if path.is_file() and path.suffix != ".lock"]
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_a_run_comes_back_as_it_was(ended: RunFolder, runs_dir: Path) -> None:
    archive, before = RunArchive(runs_dir), digests(ended.path)
    place = archive.put_away(ended)
    assert (place.stat().st_size < 50_000, ended.path.exists(), list_runs(runs_dir)) == (True, False, [])
    assert [each.run_id for each in archive.ls()] == ["a-run"]
    assert digests(archive.bring_back("a-run").path) == before
    assert (archive.ls(), [run.run_id for run in list_runs(runs_dir)]) == ([], ["a-run"])
    assert sorted(path.name for path in runs_dir.iterdir()) == [FOLDER, "a-run"]


@pytest.mark.parametrize("state", [RunState.PENDING, RunState.RUNNING])
def test_only_what_has_ended_is_put_away(tmp_path: Path, runs_dir: Path, state: RunState) -> None:
    folder = make_run(tmp_path, runs_dir, "a-run", state)
    with pytest.raises(RunError, match="has ended"):
        RunArchive(runs_dir).put_away(folder)
    assert folder.path.exists()


def test_a_run_that_waits_to_go_on_or_has_a_driver_is_not_put_away(ended: RunFolder, runs_dir: Path) -> None:
    with ended.driving(), pytest.raises(RunBusy):
        RunArchive(runs_dir).put_away(ended)
    ended.write_progress(ended.progress().model_copy(update={"state": RunState.FAILED}))
    RunQueue(runs_dir, QueueSettings()).enqueue(ended, "ann", again=True)
    with pytest.raises(RunError, match="has ended"):
        RunArchive(runs_dir).put_away(ended)
    assert ended.path.exists()


def test_nothing_is_overwritten_when_a_run_of_that_name_is_there(
    ended: RunFolder, runs_dir: Path, tmp_path: Path
) -> None:
    archive = RunArchive(runs_dir)
    archive.put_away(ended)
    other = make_run(tmp_path, runs_dir, "a-run")
    before = digests(other.path)
    with pytest.raises(RunError, match="not among the runs"):
        archive.bring_back("a-run")
    assert (digests(other.path), len(archive.ls())) == (before, 1)


@pytest.mark.parametrize("keep", [0, 1, 100, 0.5, 0.99])
def test_a_damaged_file_is_refused_and_kept(ended: RunFolder, runs_dir: Path, keep: float) -> None:
    archive = RunArchive(runs_dir)
    place = archive.put_away(ended)
    content = place.read_bytes()
    place.write_bytes(content[: int(keep if keep >= 1 or keep == 0 else keep * len(content))])
    with pytest.raises(RunError, match="archive file"):
        archive.bring_back("a-run")
    assert (place.exists(), ended.path.exists()) == (True, False)
    assert sorted(path.name for path in runs_dir.iterdir()) == [FOLDER]


@pytest.mark.parametrize("name", ["nobody", "../bars", ""])
def test_what_is_not_in_the_archive_is_not_brought_back(ended: RunFolder, runs_dir: Path, name: str) -> None:
    with pytest.raises(RunError):
        RunArchive(runs_dir).bring_back(name)
