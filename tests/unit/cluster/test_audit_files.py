"""Files of the archive: written whole, read as they were written, and damage is a finding and never a wrong row."""

from __future__ import annotations

import random
from pathlib import Path

import msgspec
import pytest

from cluster.audit_chain import Finding, Row
from cluster.audit_files import ROWS_PER_GROUP, Archive, ArchiveError, ArchiveFile
from tests.audit_rows import log


def read(archive: Archive, file: ArchiveFile) -> tuple[list[Row], list[Finding]]:
    rows: list[Row] = []
    findings: list[Finding] = []
    for group in archive.groups(file):
        if isinstance(group, Finding):
            findings.append(group)
        else:
            rows += group
    return rows, findings


@pytest.fixture
def archive(tmp_path: Path) -> Archive:
    return Archive(tmp_path, "main")


def test_rows_come_back_as_they_were_with_their_place(archive: Archive) -> None:
    rows = log(3, first=8)
    file = archive.write(rows)
    found, findings = read(archive, file)
    assert ([row.from_stream() for row in found], findings) == (rows, [])
    assert [(row.file, row.row) for row in found] == [(file.name, 1), (file.name, 2), (file.name, 3)]
    assert (file.first, file.last) == (8, 10)
    assert archive.files() == [file]


def test_a_file_of_several_groups_numbers_its_rows_through(archive: Archive) -> None:
    file = archive.write(log(ROWS_PER_GROUP + 2))
    found, _ = read(archive, file)
    assert [row.row for row in found[-2:]] == [ROWS_PER_GROUP + 1, ROWS_PER_GROUP + 2]


def test_the_same_rows_make_the_same_bytes(archive: Archive, tmp_path: Path) -> None:
    assert archive.write(log(5)).sha256() == archive.write(log(5)).sha256()
    assert Archive(tmp_path / "other", "main").write(log(5)).sha256() == archive.files()[0].sha256()


@pytest.mark.parametrize("text", ["", "\n", "\x00", "ü€😀", "x" * 100_000, '{"a":"\\u0000"}'])
def test_any_text_comes_back(archive: Archive, text: str) -> None:
    (row,) = log(1)
    file = archive.write([msgspec.structs.replace(row, data=text, by=text)])
    ((found,), _) = read(archive, file)
    assert (found.data, found.by) == (text, text)


@pytest.mark.parametrize("picked", [[], [0, 2], [1, 0], [0, 0]])
def test_rows_that_are_not_consecutive_are_refused(archive: Archive, picked: list[int]) -> None:
    rows = log(3)
    with pytest.raises(ArchiveError, match="consecutive"):
        archive.write([rows[index] for index in picked])
    assert archive.files() == []


def test_files_are_in_the_order_of_their_entries_and_others_are_left_alone(archive: Archive) -> None:
    later, earlier = archive.write(log(2, first=100_000_000)), archive.write(log(2, first=9))
    (archive.path / "notes.txt").write_text("mine")
    (archive.path / "1-2.parquet").write_text("not ours")
    assert archive.files() == [earlier, later]
    archive.clean()
    assert (archive.path / "notes.txt").exists()


def test_what_a_killed_writer_left_is_deleted(archive: Archive) -> None:
    file = archive.write(log(2))
    half = archive.path / f".{file.name}.{'a' * 16}"
    half.write_bytes(b"half")
    archive.clean()
    assert not half.exists()
    assert archive.files() == [file]


def test_nothing_is_left_where_a_write_fails(archive: Archive, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("cluster.audit_files.os.fsync", full)
    with pytest.raises(OSError, match="No space"):
        archive.write(log(2))
    assert list(archive.path.iterdir()) == []


def test_a_changed_byte_is_an_unreadable_part_or_rows_that_differ_or_nothing_but_never_another_error(
    archive: Archive,
) -> None:
    """The recorded SHA-256 finds every changed byte; what is left to read must say what it is."""
    rows, chance = log(ROWS_PER_GROUP + 200), random.Random(11)
    file = archive.write(rows)
    content, sha256 = file.path.read_bytes(), file.sha256()
    kinds: set[str] = set()
    for _ in range(150):
        changed = bytearray(content)
        changed[chance.randrange(len(changed))] ^= 1 << chance.randrange(8)
        file.path.write_bytes(changed)
        found, findings = read(archive, file)
        assert file.sha256() != sha256
        kinds.add("whole" if not findings else findings[0].rule)
        assert all(finding.file == file.name for finding in findings)
        assert findings or len(found) == len(rows)
    assert "unreadable" in kinds


@pytest.mark.parametrize("kept", [0, 1, 4, 100, -1, -4, -9])
def test_a_file_that_was_cut_off_is_unreadable(archive: Archive, kept: int) -> None:
    file = archive.write(log(20))
    file.path.write_bytes(file.path.read_bytes()[:kept])
    rows, findings = read(archive, file)
    assert (rows, [finding.rule for finding in findings]) == ([], ["unreadable"])


def test_a_damaged_part_leaves_the_others_readable(archive: Archive) -> None:
    rows = log(3 * ROWS_PER_GROUP)
    file = archive.write(rows)
    content = bytearray(file.path.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 64] = b"\xff" * 64
    file.path.write_bytes(content)
    found, (finding,) = read(archive, file)
    assert finding.row == ROWS_PER_GROUP + 1
    assert [row.from_stream() for row in found] == rows[:ROWS_PER_GROUP] + rows[2 * ROWS_PER_GROUP :]


def test_a_parquet_file_of_something_else_is_unreadable(archive: Archive) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    file = archive.write(log(2))
    pq.write_table(pa.table({"seq": [1, 2]}), file.path)
    rows, findings = read(archive, file)
    assert (rows, len(findings)) == ([], 1)
    assert "expected the columns" in findings[0].found


def test_what_is_put_aside_is_kept(archive: Archive) -> None:
    file = archive.write(log(2))
    content = file.path.read_bytes()
    assert archive.put_aside([]) is None
    aside = archive.put_aside([file])
    assert aside is not None
    assert (aside / file.name).read_bytes() == content
    assert archive.files() == []


def test_the_desks_own_log_has_a_name_no_account_can_have(tmp_path: Path) -> None:
    assert Archive(tmp_path, None).path == tmp_path / "@desk"
