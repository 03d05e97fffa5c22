"""The file of a log's anchors without a ledger: signed lines appended whole, read from either end, one writer."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import msgspec
import pytest

from cluster.anchor_file import NOTHING, TAIL_BYTES, Anchor, AnchorError, AnchorFile, key_name

KEY = b"a key of at least sixteen bytes"
KEYS = {key_name(KEY): KEY}


@pytest.fixture
def file(tmp_path: Path) -> AnchorFile:
    return AnchorFile(tmp_path, "main", KEYS)


def filled(file: AnchorFile, count: int) -> AnchorFile:
    for seq in range(1, count + 1):
        lines, _ = file.lines(TAIL_BYTES)
        before = lines[-1].digest if lines else NOTHING
        file.append(Anchor("main", seq, "c" * 40, "1-0", seq - 1, "d" * 64, seq, before))
    return file


def test_lines_come_back_as_they_were_signed(file: AnchorFile) -> None:
    lines, findings = filled(file, 3).lines()
    assert findings == []
    assert [(line.number, line.anchor.seq) for line in lines if line.anchor] == [(1, 1), (2, 2), (3, 3)]
    first = json.loads(file.path.read_bytes().splitlines()[0])
    assert (first["key"], len(first["mac"]), first["before"]) == (key_name(KEY), 64, NOTHING)
    assert KEY.decode() not in file.path.read_text()


def test_no_file_has_no_lines(file: AnchorFile) -> None:
    assert file.lines() == ([], [])
    assert file.put_aside(5) is None


def test_the_end_of_a_long_file_is_read_without_the_rest(file: AnchorFile) -> None:
    filled(file, 250)
    assert file.path.stat().st_size > TAIL_BYTES
    lines, findings = file.lines(TAIL_BYTES)
    assert findings == []
    assert 0 < len(lines) < 250
    assert [line.anchor.seq for line in lines[-1:] if line.anchor] == [250]
    assert {line.number for line in lines} == {0}


@pytest.mark.parametrize("name", [field.name for field in msgspec.structs.fields(Anchor)])
def test_every_field_of_a_line_is_signed(file: AnchorFile, name: str) -> None:
    filled(file, 2)
    lines = [json.loads(line) for line in file.path.read_bytes().splitlines()]
    lines[1][name] = lines[1][name] + (1 if isinstance(lines[1][name], int) else "x")
    text = [json.dumps(line, sort_keys=True, separators=(",", ":")) for line in lines]
    file.path.write_text("".join(f"{line}\n" for line in text))
    _, (finding, *_) = file.lines()
    assert (finding.rule, finding.file, finding.row) == ("anchor", file.path.name, 2)


def test_a_line_signed_with_a_key_nobody_has_is_not_believed(file: AnchorFile, tmp_path: Path) -> None:
    filled(file, 1)
    other = b"another key of sixteen bytes"
    _, (finding,) = AnchorFile(tmp_path, "main", {key_name(other): other}).lines()
    assert key_name(KEY) in finding.found


def test_a_torn_line_is_none_and_is_written_over(file: AnchorFile) -> None:
    whole = filled(file, 2).path.read_bytes()
    file.path.write_bytes(whole + whole[:100])
    lines, findings = file.lines()
    assert (len(lines), findings) == (2, [])
    filled_again = file.append(Anchor("main", 3, "c" * 40, "1-0", 2, "d" * 64, 3, lines[-1].digest))
    assert filled_again.seq == 3
    lines, findings = file.lines()
    assert (len(lines), findings) == (3, [])
    assert file.path.read_bytes().startswith(whole)


def test_a_file_that_cannot_be_read_or_written_is_an_error_that_names_it(file: AnchorFile) -> None:
    file.path.mkdir()
    with pytest.raises(AnchorError, match=r"anchors-main\.jsonl: cannot be read"):
        file.lines()
    with pytest.raises(AnchorError, match=r"anchors-main\.jsonl: cannot be written"):
        file.append(Anchor("main", 1, "", "", 0, "", 1, NOTHING))


def test_what_is_put_aside_is_kept_under_another_name(file: AnchorFile) -> None:
    content = filled(file, 1).path.read_bytes()
    kept = file.put_aside(77)
    assert kept == file.path.with_name("anchors-main.until-77.jsonl")
    assert kept.read_bytes() == content
    assert file.lines() == ([], [])


def test_one_writer_at_a_time_and_a_second_gives_up_in_the_end(
    file: AnchorFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cluster.anchor_file.LOCK_PAUSE_S", 0)

    async def both() -> None:
        async with file.locked():
            with pytest.raises(AnchorError, match="another process"):
                async with file.locked():
                    raise AssertionError("two writers at once")

    asyncio.run(both())


@pytest.mark.parametrize("key", [b"", b"short", b"fifteen bytes.."])
def test_a_short_key_is_refused(key: bytes) -> None:
    with pytest.raises(AnchorError, match="audit_key"):
        key_name(key)


def test_the_desks_own_file_has_a_name_no_account_can_have(tmp_path: Path) -> None:
    assert AnchorFile(tmp_path, None, KEYS).path.name == "anchors-@desk.jsonl"
