"""Move old audit entries from the ledger into Parquet, and only then drop them from its stream.

``python -m jobs.archive [--keep-hours H]``. Killed at any point and repeated it loses and doubles nothing: a file is
whole or absent, an entry of the log itself says that it is there, and what no such entry covers is not dropped.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import fcntl
import json
import math
import sys
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Final

from cluster.anchors import audit_folder
from cluster.audit_chain import GENESIS, ChainCheck, Finding, Row
from cluster.audit_files import DESK_NAME, ROWS_PER_FILE_MAX, Archive, ArchiveError, ArchiveFile
from cluster.audit_log import AuditLog, AuditMoved
from cluster.ledger import Ledger, LedgerError, LedgerUnavailable
from conf.settings import SettingsError, load_secrets, load_settings

KEEP_HOURS: Final = 72.0
US_PER_HOUR: Final = 3_600_000_000


@dataclass(slots=True)
class ArchiveReport:
    """What was done for one account: entries moved, the files they are in, and how many left the stream."""

    account: str
    rows: int = 0
    dropped: int = 0
    files: list[str] = field(default_factory=list)


async def archive_account(
    ledger: Ledger,
    account: str | None,
    folder: Path,
    keep_hours: float = KEEP_HOURS,
    rows_per_file: int = ROWS_PER_FILE_MAX,
) -> ArchiveReport:
    """Archive the entries of an account (None: the desk) that are older than ``keep_hours`` by the server's clock.

    ``folder`` is the audit folder. Raises ``ArchiveError`` where the entries are not sound or a file is not the one
    that was recorded (nothing more is dropped then), ``LedgerUnavailable``.
    """
    work = _Work(ledger, account, folder)
    with _lock(folder, work.log.name):
        work.archive.clean()
        await work.drop_archived()
        work.remove_leftovers(await work.log.first_in_stream())
        snapshot = await ledger.snapshot(account)
        before_us = snapshot.now_ms * 1_000 - round(keep_hours * US_PER_HOUR)
        async for rows in work.old_rows(before_us, rows_per_file):
            await work.move(rows)
    return work.report


class _Work:
    """One account's turn."""

    def __init__(self, ledger: Ledger, account: str | None, folder: Path) -> None:
        self.log = AuditLog(ledger, account, folder)
        self.archive = Archive(folder, account)
        self.report = ArchiveReport(self.log.name)
        self._ledger = ledger
        self._account = account
        self._through = 0

    async def drop_archived(self) -> None:
        """Finish what a killed run began: entries that are archived leave the stream."""
        archived = (await self._ledger.snapshot(self._account)).book.get("archived", "0")
        if not (archived.isascii() and archived.isdigit()):
            raise ArchiveError(f"account {self.log.name}: :book archived is no number: {archived!r}")
        self._through = int(archived)
        first = await self.log.first_in_stream()
        if first is None or first.problem or first.seq > self._through:
            return
        for file, sha256 in await self._recorded(first.seq):
            _require(file, sha256)
        rows = [row async for page in self.log.pages(self._through - 1, self._through) for row in page]
        for stream_id in [row.stream_id for row in rows if isinstance(row, Row) and row.seq == self._through]:
            self.report.dropped += await self._ledger.trim_audit(self._account, stream_id)

    async def _recorded(self, first: int) -> list[tuple[ArchiveFile, str]]:
        """The files of the archived entries from ``first`` on, with the hashes recorded of them."""
        hashes: dict[str, str] = {}
        async for page in self.log.pages(first - 1):
            for row in page:
                if isinstance(row, Row) and row.kind == "ARCHIVED":
                    note = json.loads(row.data)
                    hashes[note["file"]] = note["sha256"]
        files = [file for file in self.archive.files() if first <= file.last <= self._through]
        reached = first - 1
        for file in files:
            if file.name not in hashes or file.first > reached + 1:
                break
            reached = file.last
        if reached != self._through:
            raise ArchiveError(
                f"account {self.log.name}: entries {reached + 1} to {self._through} are said to be archived, but no "
                f"file of {self.archive.path} holds them; nothing is dropped from the stream"
            )
        return [(file, hashes[file.name]) for file in files]

    def remove_leftovers(self, first: Row | None) -> None:
        """Delete files of a run that was killed before they were recorded; their entries are all in the stream."""
        for file in self.archive.files():
            if file.last <= self._through:
                continue
            if first is None or first.problem or first.seq > file.first:
                raise ArchiveError(
                    f"{file.path}: no entry of the log names this file, and the stream does not hold its entries; "
                    "is this the folder of another ledger? (desk audit reset puts old archives aside)"
                )
            self.archive.remove(file)

    async def old_rows(self, before_us: int, rows_per_file: int) -> AsyncIterator[Sequence[Row]]:
        """The sound entries that are old enough, in the portions of a file."""
        check = ChainCheck(self._through, self._chain_at(self._through))
        portion: list[Row] = []
        after_id = ""
        while page := await self.log.page(after_id):
            for row in page:
                check.take(row)
                if check.seq != row.seq or row.us >= before_us:
                    break
                portion.append(row)
                if len(portion) == rows_per_file:
                    yield portion
                    portion = []
            else:
                after_id = page[-1].stream_id
                continue
            break
        if findings := check.finish():
            raise ArchiveError(f"account {self.log.name}: not archived, the entries are not sound: {findings[0]}")
        if portion:
            yield portion

    async def move(self, rows: Sequence[Row]) -> None:
        """File, record, drop: each only when the one before is on the disk."""
        file = self.archive.write(rows)
        if _read(self.archive, file) != list(rows):
            raise ArchiveError(f"{file.path}: does not hold what was written")
        await self._ledger.archived(self._account, file.last, file.name, file.sha256())
        self.report.files.append(file.name)
        self.report.rows += len(rows)
        self._through = file.last
        self.report.dropped += await self._ledger.trim_audit(self._account, rows[-1].stream_id)

    def _chain_at(self, seq: int) -> str:
        """The chain value of the last archived entry."""
        if seq == 0:
            return GENESIS
        file = next((file for file in self.archive.files() if file.last == seq), None)
        rows = [] if file is None else _read(self.archive, file)
        if not rows:
            raise ArchiveError(f"account {self.log.name}: no file of {self.archive.path} holds entry {seq}")
        return rows[-1].chain


def main(arguments: Sequence[str] | None = None) -> int:
    """Archive every account and the desk; the exit code says whether all went well."""
    options = _parser().parse_args(arguments)
    try:
        reports, problems = asyncio.run(_archive_all(options))
    except (SettingsError, LedgerError, LedgerUnavailable) as error:
        reports, problems = [], [f"{type(error).__name__}: {error}"]
    if options.json:
        print(json.dumps({"accounts": [asdict(report) for report in reports], "problems": problems}, indent=1))
    else:
        for report in reports:
            what = ", ".join(report.files) or "nothing is old enough"
            print(f"{report.account}: {report.rows} entries archived, {report.dropped} left the stream ({what})")
    for problem in problems:
        print(f"error: {problem}", file=sys.stderr)
    return 1 if problems else 0


async def _archive_all(options: argparse.Namespace) -> tuple[list[ArchiveReport], list[str]]:
    settings = load_settings(state_dir=options.state_dir)
    ledger = Ledger.connect(settings, load_secrets(settings))
    reports: list[ArchiveReport] = []
    problems: list[str] = []
    try:
        for account in [options.account] if options.account else [None, *await ledger.accounts()]:
            # One account's damage must not fill the memory with the entries of the others.
            try:
                reports.append(
                    await archive_account(
                        ledger,
                        None if account == DESK_NAME else account,
                        audit_folder(settings),
                        options.keep_hours,
                        options.rows_per_file,
                    )
                )
            except (ArchiveError, AuditMoved, OSError) as error:
                problems.append(str(error))
    finally:
        await ledger.close()
    return reports, problems


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m jobs.archive", description=__doc__)
    parser.add_argument("--keep-hours", type=_hours, default=KEEP_HOURS, help="what is younger stays in the ledger")
    parser.add_argument("--account", help=f"only this account ({DESK_NAME}: the desk's own log)")
    parser.add_argument("--rows-per-file", type=_rows, default=ROWS_PER_FILE_MAX, help="entries in a file at most")
    parser.add_argument("--state-dir", type=Path, help="the desk's state folder, where DESK_STATE_DIR is not set")
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    return parser


def _hours(text: str) -> float:
    try:
        hours = float(text)
    except ValueError:
        hours = math.nan
    if not 0 <= hours <= 1_000_000:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of hours from 0 to 1,000,000")
    return hours


def _rows(text: str) -> int:
    if not text.isascii() or not text.isdigit() or not 1 <= int(text) <= ROWS_PER_FILE_MAX:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 1 to {ROWS_PER_FILE_MAX}")
    return int(text)


def _require(file: ArchiveFile, sha256: str) -> None:
    if (found := file.sha256()) != sha256:
        raise ArchiveError(f"{file.path}: expected SHA-256 {sha256}, was {found}; nothing is dropped from the stream")


def _read(archive: Archive, file: ArchiveFile) -> list[Row]:
    """The rows of a file as rows of the stream; raises ``ArchiveError`` where some cannot be read."""
    rows: list[Row] = []
    for group in archive.groups(file):
        if isinstance(group, Finding):
            raise ArchiveError(f"{file.path}: {group}")
        rows += [row.from_stream() for row in group]
    return rows


@contextlib.contextmanager
def _lock(folder: Path, name: str) -> Iterator[None]:
    """One archive job of an account at a time, over all processes of this machine."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    with (folder / f".archive-{name}.lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ArchiveError(f"account {name}: another process is archiving it") from None
        yield


if __name__ == "__main__":
    sys.exit(main())
