"""The tools of the fault tests can tell: a check that finds nothing must be one that would have found something."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import pytest

from tests.books import ACCOUNT, BASE
from tests.faults.books_check import check_books, load_figures
from tests.faults.ledger_load import connected, opened
from tests.faults.open_loop import Answer, OpenLoop, Tried, read_answers
from tests.faults.report import Row, page
from tests.servers import Server

pytestmark = pytest.mark.anyio


async def test_the_check_of_the_books_finds_what_is_wrong_with_them(server: Server) -> None:
    names = {"o-0", "o-1", "o-2"}
    async with connected(server.settings) as ledger:
        books = await opened(ledger)
        for name in names:
            await books.accept(name)

        sound = await check_books(ledger, ACCOUNT, names, lambda _: True)
        sound.assert_whole()
        assert sound.figures() == {"acknowledged": 3, "stored": 3, "lost": 0, "duplicated": 0}

        lost = await check_books(ledger, ACCOUNT, {*names, "never stored"}, lambda _: True)
        assert lost.lost == ["never stored"]
        unknown = await check_books(ledger, ACCOUNT, {"o-0"}, lambda _: True)
        assert (unknown.unacknowledged, unknown.lost) == (2, [])

        entries = await ledger._direct("XRANGE", f"{BASE}:audit", "-", "+")
        fields = next(dict(fields) for _, fields in entries if fields["id"] == "o-1")
        await ledger._direct("XADD", f"{BASE}:audit", "*", *(part for pair in fields.items() for part in pair))
        twice = await check_books(ledger, ACCOUNT, names, lambda _: True)
        assert twice.duplicated == ["o-1"]
        assert any("audit" in difference for difference in twice.differences)


async def test_the_check_of_the_books_sums_reservations_afresh(server: Server) -> None:
    async with connected(server.settings) as ledger:
        books = await opened(ledger)
        await books.accept("o-0")
        await ledger._direct("HINCRBY", f"{BASE}:book", "a|buy_notional", "1")
        found = await check_books(ledger, ACCOUNT, {"o-0"}, lambda _: True)
        assert any("value of open orders" in difference for difference in found.differences)


async def test_latency_counts_from_when_an_order_was_due_and_repeats_keep_to_the_budget(tmp_path: Path) -> None:
    calls: list[float] = []
    away_until_s = time.time() + 1.0

    async def send(client_order_id: str) -> Tried:
        calls.append(time.time())
        await asyncio.sleep(0)
        return Tried("ACCEPTED" if time.time() > away_until_s else "UNAVAILABLE")

    file = tmp_path / "answers"
    loop = OpenLoop(send, "o", 20.0, 30.0, file)
    task = asyncio.create_task(loop.run())
    while not any(answer.first == "ACCEPTED" for answer in read_answers(file)):
        await asyncio.sleep(0.02)
    loop.stop()
    await task
    answers = read_answers(file)
    assert all(answer.accepted for answer in answers)
    assert [answer.client_order_id for answer in answers] == [f"o-{number}" for number in range(len(answers))]
    # At 20 orders a second, at most about 20 first tries and 20 repeats while nobody answers.
    assert len([at_s for at_s in calls if at_s < away_until_s]) <= 45
    figures = load_figures(answers)
    assert 0 < figures["errors_first_try_percent"] < 100
    assert figures["errors_after_retry_percent"] == 0


def test_seconds_without_service_are_the_longest_time_between_two_acceptances() -> None:
    def answer(number: int, at_s: float, last: str = "ACCEPTED") -> Answer:
        return Answer(f"o-{number}", at_s, 1, last, 2.0, last, at_s, False, 2.0)

    answers = [answer(0, 1.0), answer(1, 1.5), answer(2, 2.0, "UNAVAILABLE"), answer(3, 4.25)]
    figures = load_figures(answers)
    assert (figures["seconds_without_service"], figures["errors_after_retry_percent"]) == (2.75, 25.0)


def test_the_page_sums_counts_and_names_what_did_not_run() -> None:
    runs = [{"acknowledged": 5, "stored": 6, "lost": 0, "duplicated": 0, "back_s": seconds} for seconds in (1.5, 2.5)]
    text = page({"cores": "2"}, [Row("1", "a fault", "none", runs), Row("16", "another", "x", [], 0, ["no root"])])
    assert "| 1 | a fault | 2 | 10 | 12 | 0 | 0 | passed |" in text
    assert "| 1 | a fault | back_s | 1.5 | 2 | 2.5 |" in text
    assert "- 2\n" in text
    assert "- 16, another: no root\n" in text
    assert "## The venue" not in text


def test_the_page_says_what_is_at_the_venue_and_how_soon_both_were_equal() -> None:
    first = {"acknowledged": 5, "at_venue": 4, "lost": 0, "duplicated": 0, "undecided": 1, "resynced_s": 0.5}
    text = page({"cores": "2"}, [Row("21", "a venue", "none", [first, first | {"at_venue": 3, "resynced_s": 1.5}])])
    assert "| 21 | a venue | 2 | 10 | 7 | 0 | 0 | 2 | 1 / 1.5 | passed |" in text
