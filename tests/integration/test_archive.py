"""The archive job on real servers: killed at any point and repeated it loses and doubles nothing; proofs read both."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Final

import pandas as pd
import pytest

from cluster.anchors import Anchors, BooksLost, audit_folder
from cluster.audit import verify, verify_chain
from cluster.audit_chain import Row
from cluster.audit_files import Archive, ArchiveError
from cluster.audit_log import AuditLog
from cluster.ledger import Ledger, LedgerUnavailable
from conf.settings import RedisSettings, Settings, write_secrets
from jobs.archive import archive_account
from tests.books import ACCOUNT, BASE, Books
from tests.servers import PASSWORD

pytestmark = pytest.mark.anyio

ROOT: Final = Path(__file__).resolve().parents[2]
KEY: Final = b"a key of at least sixteen bytes"


@pytest.fixture
def ledger_server(each_server: RedisSettings) -> RedisSettings:
    """Every test here runs on Valkey and on Redis."""
    return each_server


@pytest.fixture
def folder(settings: Settings) -> Path:
    return audit_folder(settings)


@pytest.fixture
async def traded(books: Books) -> Books:
    """Some sixty entries."""
    await books.open(lots={"BTC-USD": 1_000})
    for number in range(20):
        await books.accept(f"o-{number}")
        await books.send(f"o-{number}")
        await books.fill(f"o-{number}", 4 if number % 3 else 10, 10_000 + number, fee=1)
    return books


async def whole_log(ledger: Ledger, folder: Path | None) -> list[Row]:
    """Every entry, wherever it is, without its place."""
    pages = [page async for page in AuditLog(ledger, ACCOUNT, folder).pages()]
    return [row.from_stream() for page in pages for row in page if isinstance(row, Row)]


async def in_stream(ledger: Ledger) -> list[int]:
    return [int(fields["seq"]) for _, fields in await ledger.audit_entries(ACCOUNT, "", 10_000)]


async def assert_nothing_lost(ledger: Ledger, folder: Path, before: list[Row]) -> None:
    """The entries from before are all there once, only ARCHIVED entries have come, and every proof holds."""
    after = await whole_log(ledger, folder)
    assert after[: len(before)] == before
    assert {row.kind for row in after[len(before) :]} <= {"ARCHIVED"}
    assert [row.seq for row in after] == list(range(1, len(after) + 1))
    assert (await verify_chain(ledger, ACCOUNT, folder)).findings == []
    assert await verify(ledger, ACCOUNT, folder) == []


async def test_old_entries_move_into_a_file_and_leave_the_stream(traded: Books, folder: Path) -> None:
    ledger = traded.ledger
    before = await whole_log(ledger, None)
    report = await archive_account(ledger, ACCOUNT, folder, keep_hours=0)
    assert (report.rows, report.dropped) == (len(before), len(before))
    assert report.files == [f"{1:016d}-{len(before):016d}.parquet"]
    assert await in_stream(ledger) == [len(before) + 1]
    await assert_nothing_lost(ledger, folder, before)
    assert (await verify_chain(ledger, ACCOUNT, folder)).archived == len(before)


async def test_young_entries_stay(traded: Books, folder: Path) -> None:
    before = await in_stream(traded.ledger)
    report = await archive_account(traded.ledger, ACCOUNT, folder, keep_hours=1)
    assert (report.rows, report.files) == (0, [])
    assert await in_stream(traded.ledger) == before


async def test_the_desks_own_log_is_archived_too(traded: Books, folder: Path) -> None:
    report = await archive_account(traded.ledger, None, folder, keep_hours=0)
    assert report.rows > 0
    assert (await verify_chain(traded.ledger, None, folder)).findings == []
    assert await verify(traded.ledger, None, folder) == []


async def test_life_goes_on_between_archives_and_every_proof_holds(traded: Books, folder: Path) -> None:
    ledger, archived = traded.ledger, 0
    for turn in range(4):
        before = await whole_log(ledger, folder)
        report = await archive_account(ledger, ACCOUNT, folder, keep_hours=0, rows_per_file=25)
        archived += report.rows
        assert archived >= len(before)
        await assert_nothing_lost(ledger, folder, before)
        for number in range(10):
            await traded.accept(f"t-{turn}-{number}")
    assert len(Archive(folder, ACCOUNT).files()) >= 4


async def test_without_the_archive_the_proof_says_what_lacks(traded: Books, folder: Path) -> None:
    before = await whole_log(traded.ledger, None)
    await archive_account(traded.ledger, ACCOUNT, folder, keep_hours=0)
    (finding,) = (await verify_chain(traded.ledger, ACCOUNT, None)).findings[:1]
    assert (finding.rule, finding.expected) == ("missing", f"entries 1 to {len(before)}")
    (difference,) = await verify(traded.ledger, ACCOUNT)
    assert "audit entries" in difference.what


async def test_pandas_reads_a_file_as_it_is(traded: Books, folder: Path) -> None:
    before = await whole_log(traded.ledger, None)
    await archive_account(traded.ledger, ACCOUNT, folder, keep_hours=0)
    (file,) = Archive(folder, ACCOUNT).files()
    frame = pd.read_parquet(file.path)
    assert list(frame.columns) == ["seq", "us", "kind", "id", "by", "data", "chain", "stream_id"]
    assert frame["seq"].tolist() == [row.seq for row in before]
    fills = frame[frame["kind"] == "FILL"]
    assert sum(int(json.loads(data)["lots"]) for data in fills["data"]) == 7 * 10 + 13 * 4
    assert file.path.stat().st_mode & 0o077 == 0


async def test_anchors_hold_over_an_archive(traded: Books, folder: Path) -> None:
    anchors = Anchors(folder, KEY)
    await anchors.write(traded.ledger, ACCOUNT)
    await archive_account(traded.ledger, ACCOUNT, folder, keep_hours=0)
    await anchors.require(traded.ledger, ACCOUNT)
    assert await anchors.check(traded.ledger, ACCOUNT) == []
    assert await anchors.write(traded.ledger, ACCOUNT) is not None
    await traded.accept("o-99")
    await archive_account(traded.ledger, ACCOUNT, folder, keep_hours=0)
    assert await anchors.write(traded.ledger, ACCOUNT) is not None
    assert await anchors.check(traded.ledger, ACCOUNT) == []


# -- killed at any point -----------------------------------------------------------------------------------------------


class Killed(BaseException):
    """Stands for the end of the process: nothing of ours catches it."""


POINTS: Final = ("half of the file written", "file written", "recorded", "answer to the recording lost", "dropped")


@pytest.mark.parametrize("point", POINTS)
async def test_a_job_that_is_killed_at_any_point_is_finished_by_the_next(
    traded: Books, folder: Path, monkeypatch: pytest.MonkeyPatch, point: str
) -> None:
    ledger = traded.ledger
    before = await whole_log(ledger, None)
    with monkeypatch.context() as patched:
        kill_at(patched, ledger, point)
        with pytest.raises((Killed, LedgerUnavailable)):
            await archive_account(ledger, ACCOUNT, folder, keep_hours=0, rows_per_file=20)
    assert (await verify_chain(ledger, ACCOUNT, folder)).findings == []
    assert (await whole_log(ledger, folder))[: len(before)] == before
    await traded.accept("o-99")
    before = await whole_log(ledger, folder)
    await archive_account(ledger, ACCOUNT, folder, keep_hours=0, rows_per_file=20)
    await assert_nothing_lost(ledger, folder, before)
    assert min(await in_stream(ledger)) > len(before)
    assert not [path for path in (folder / ACCOUNT).iterdir() if path.name.startswith(".")]


def kill_at(patched: pytest.MonkeyPatch, ledger: Ledger, point: str) -> None:
    archived, trim, write = ledger.archived, ledger.trim_audit, Archive.write

    async def dies(*_: Any, **__: Any) -> int:
        raise Killed

    async def archived_then_dies(*args: Any) -> int:
        await archived(*args)
        raise LedgerUnavailable("the answer was lost") if "lost" in point else Killed

    async def trim_then_dies(*args: Any) -> int:
        await trim(*args)
        raise Killed

    def half_written(self: Archive, rows: list[Row]) -> Any:
        file = write(self, rows)
        content = file.path.read_bytes()
        file.path.with_name(f".{file.name}.{'0' * 16}").write_bytes(content[: len(content) // 2])
        file.path.unlink()
        raise Killed

    if point == "half of the file written":
        patched.setattr(Archive, "write", half_written)
    elif point == "file written":
        patched.setattr(ledger, "archived", dies)
    elif point == "dropped":
        patched.setattr(ledger, "trim_audit", trim_then_dies)
    else:
        patched.setattr(ledger, "archived", archived_then_dies)


@pytest.mark.slow
async def test_the_job_as_a_process_killed_again_and_again_loses_nothing(traded: Books, settings: Settings) -> None:
    ledger, folder = traded.ledger, audit_folder(settings)
    write_secrets(settings.state_dir / "secrets.env", {"redis_password": PASSWORD, "api_key_pepper": "p" * 20})
    before, chance, killed = await whole_log(ledger, None), random.Random(3), 0
    for number in range(8):
        process = start_job(settings, "--rows-per-file", "4")
        time.sleep(0.25 + 0.06 * number + chance.random() * 0.02)
        killed += process.poll() is None
        process.kill()
        process.communicate()
        after = await whole_log(ledger, folder)
        assert after[: len(before)] == before
        assert (await verify_chain(ledger, ACCOUNT, folder)).findings == []
    assert killed > 0
    process = start_job(settings, "--rows-per-file", "4", "--json")
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 0, output
    assert {report["account"] for report in json.loads(output)["accounts"]} == {"@desk", ACCOUNT}
    await assert_nothing_lost(ledger, folder, before)
    assert min(await in_stream(ledger)) > len(before)


def start_job(settings: Settings, *more: str) -> subprocess.Popen[str]:
    environment = {name: text for name, text in os.environ.items() if not name.startswith("DESK_")}
    redis = settings.redis
    environment |= {"DESK_REDIS__HOST": str(redis.host), "DESK_REDIS__PORT": str(redis.port)}
    argv = [sys.executable, "-m", "jobs.archive", "--keep-hours", "0", "--state-dir", str(settings.state_dir), *more]
    return subprocess.Popen(argv, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True)


# -- what must not happen ----------------------------------------------------------------------------------------------


async def test_a_file_that_was_changed_keeps_its_entries_in_the_stream(
    traded: Books, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger = traded.ledger
    before = await in_stream(ledger)
    with monkeypatch.context() as patched:
        kill_at(patched, ledger, "recorded")
        with pytest.raises(Killed):
            await archive_account(ledger, ACCOUNT, folder, keep_hours=0)
    (file,) = Archive(folder, ACCOUNT).files()
    file.path.chmod(0o600)
    content = bytearray(file.path.read_bytes())
    content[len(content) // 2] ^= 1
    file.path.write_bytes(content)
    with pytest.raises(ArchiveError, match="nothing is dropped"):
        await archive_account(ledger, ACCOUNT, folder, keep_hours=0)
    assert (await in_stream(ledger))[: len(before)] == before
    findings = (await verify_chain(ledger, ACCOUNT, folder)).findings
    assert [finding.rule for finding in findings] == ["file"]


async def test_a_file_that_is_gone_keeps_its_entries_in_the_stream(
    traded: Books, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        kill_at(patched, traded.ledger, "recorded")
        with pytest.raises(Killed):
            await archive_account(traded.ledger, ACCOUNT, folder, keep_hours=0)
    (file,) = Archive(folder, ACCOUNT).files()
    file.path.unlink()
    with pytest.raises(ArchiveError, match="nothing is dropped"):
        await archive_account(traded.ledger, ACCOUNT, folder, keep_hours=0)
    assert 1 in await in_stream(traded.ledger)


async def test_entries_that_are_not_sound_are_not_archived(traded: Books, folder: Path) -> None:
    entries = await traded.ledger.audit_entries(ACCOUNT, "", 10_000)
    await traded.ledger._direct("XDEL", f"{BASE}:audit", entries[30][0])
    with pytest.raises(ArchiveError, match="not sound: missing: entry 31"):
        await archive_account(traded.ledger, ACCOUNT, folder, keep_hours=0)
    assert Archive(folder, ACCOUNT).files() == []
    assert len(await in_stream(traded.ledger)) == len(entries) - 1


async def test_the_ledger_drops_nothing_that_no_archive_holds(traded: Books) -> None:
    entries = await traded.ledger.audit_entries(ACCOUNT, "", 10_000)
    with pytest.raises(Exception, match="in no archive"):
        await traded.ledger.trim_audit(ACCOUNT, entries[5][0])
    assert len(await in_stream(traded.ledger)) == len(entries)


async def test_two_jobs_at_once_are_one(traded: Books, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    archived = traded.ledger.archived

    async def meanwhile(*args: Any) -> int:
        with pytest.raises(ArchiveError, match="another process"):
            await archive_account(traded.ledger, ACCOUNT, folder, keep_hours=0)
        return await archived(*args)

    monkeypatch.setattr(traded.ledger, "archived", meanwhile)
    assert (await archive_account(traded.ledger, ACCOUNT, folder, keep_hours=0)).rows > 0


DAMAGES: list[tuple[str, str]] = [("overwritten", "unreadable"), ("cut off", "unreadable"), ("gone", "missing")]


@pytest.mark.parametrize(("damage", "rule"), DAMAGES)
async def test_an_archived_file_that_is_damaged_is_found_with_its_rows(
    traded: Books, folder: Path, damage: str, rule: str
) -> None:
    before = await whole_log(traded.ledger, None)
    await archive_account(traded.ledger, ACCOUNT, folder, keep_hours=0, rows_per_file=30)
    second = Archive(folder, ACCOUNT).files()[1]
    content = second.path.read_bytes()
    second.path.write_bytes(content[: len(content) // 2] if damage == "cut off" else b"x" * len(content))
    if damage == "gone":
        second.path.unlink()
    report = await verify_chain(traded.ledger, ACCOUNT, folder)
    assert any(finding.rule == "file" and finding.file == second.name for finding in report.findings)
    assert any(finding.rule == rule for finding in report.findings)
    missing = [finding for finding in report.findings if finding.rule == "missing"]
    assert [finding.seq for finding in missing] == [31]
    assert "entries 31 to 60" in missing[0].expected
    assert len(before) > 60
    with pytest.raises(BooksLost):
        await Anchors(folder, KEY).write(traded.ledger, ACCOUNT)


async def test_a_row_altered_within_a_file_is_found_at_file_and_row(traded: Books, folder: Path) -> None:
    """Written as a good file again: only the chain and the recorded hash can tell."""
    await archive_account(traded.ledger, ACCOUNT, folder, keep_hours=0, rows_per_file=30)
    second = Archive(folder, ACCOUNT).files()[1]
    frame = pd.read_parquet(second.path)
    frame.loc[4, "data"] = '{"forged":1}'
    rows = [Row(*values) for values in frame.itertuples(index=False)]
    Archive(folder, ACCOUNT).write(rows)
    findings = (await verify_chain(traded.ledger, ACCOUNT, folder)).findings
    assert [(f.rule, f.seq, f.file, f.row) for f in findings] == [
        ("altered", 35, second.name, 5),
        ("file", None, second.name, None),
    ]


async def test_a_file_of_another_life_stops_the_job_and_a_reset_puts_it_aside(traded: Books, folder: Path) -> None:
    anchors = Anchors(folder, KEY)
    await anchors.write(traded.ledger, ACCOUNT)
    await archive_account(traded.ledger, ACCOUNT, folder, keep_hours=0)
    names = [file.name for file in Archive(folder, ACCOUNT).files()]
    await traded.ledger._direct("FLUSHALL")
    await traded.ledger.install()
    await traded.open()
    kept = await anchors.reset(traded.ledger, ACCOUNT, "begun anew", "test")
    assert len(kept) == 2
    assert [path.name for path in kept[0].iterdir()] == names
    await archive_account(traded.ledger, ACCOUNT, folder, keep_hours=0)
    assert (await verify_chain(traded.ledger, ACCOUNT, folder)).findings == []
    assert await anchors.check(traded.ledger, ACCOUNT) == []


async def test_an_emptied_ledger_is_refused_by_its_archive_alone(traded: Books, folder: Path) -> None:
    """The anchors were lost together with the ledger, or there never were any."""
    anchors = Anchors(folder, KEY)
    await archive_account(traded.ledger, ACCOUNT, folder, keep_hours=0)
    await anchors.require(traded.ledger, ACCOUNT)
    await traded.ledger._direct("FLUSHALL")
    await traded.ledger.install()
    with pytest.raises(BooksLost, match="acknowledged entries are lost"):
        await anchors.require(traded.ledger, ACCOUNT)


async def test_proofs_hold_while_entries_move_to_the_archive(
    traded: Books, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the look at the archive and the reading of the stream, again and again."""
    ledger, read, turns = traded.ledger, traded.ledger.audit_entries, 0

    async def archived_meanwhile(*args: Any) -> Any:
        nonlocal turns
        found = await read(*args)
        turns += 1
        if turns in {1, 5, 9}:
            with monkeypatch.context() as patched:
                patched.setattr(ledger, "audit_entries", read)
                await archive_account(ledger, ACCOUNT, folder, keep_hours=0, rows_per_file=10)
        return found

    monkeypatch.setattr(ledger, "audit_entries", archived_meanwhile)
    for proof in (verify_chain, verify):
        turns = 0
        await traded.accept(f"more-{proof.__name__}")
        found: Any = await proof(ledger, ACCOUNT, folder)
        assert (found if proof is verify else found.findings) == []
    anchors = Anchors(folder, KEY)
    turns = 0
    await anchors.write(ledger, ACCOUNT)
    turns = 0
    await traded.accept("and-more")
    assert await anchors.check(ledger, ACCOUNT) == []
