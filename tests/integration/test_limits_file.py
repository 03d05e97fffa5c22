"""limits.yaml beside limits changed by people: a restart, or an edit of one limit, undoes nothing else."""

from __future__ import annotations

import pytest

from cluster.ledger import LimitsChange
from tests.books import ACCOUNT, ASKER, Books, Changed, limit_records

pytestmark = pytest.mark.anyio

FILE = "limits.yaml"


async def take(books: Books, file: Changed, digest: str) -> LimitsChange:
    """What execution does when it starts with a file."""
    _, records = limit_records(file)
    return await books.ledger.set_limits(ACCOUNT, records, FILE, person=FILE, baseline=digest)


async def limit_in_force(books: Books, scope: str, name: str) -> str:
    record = (await books.ledger.snapshot(ACCOUNT)).limits[scope]
    return dict(part.split("=") for part in record.split())[name]


async def raised(books: Books, changed: Changed) -> None:
    """Two people agree on limits that are not the file's."""
    _, records = limit_records(changed)
    change = await books.ledger.set_limits(ACCOUNT, records, "test", person=ASKER)
    assert change.proposal_id is not None
    await books.approve(change.proposal_id)


async def test_the_same_file_taken_again_does_not_undo_what_was_approved(books: Books) -> None:
    await take(books, {"account|max_open_orders": "10"}, "one")
    await raised(books, {"account|max_open_orders": "20"})
    again = await take(books, {"account|max_open_orders": "10"}, "one")
    assert (again.changed, again.proposal_id) == ({}, None)
    assert await limit_in_force(books, "account", "max_open_orders") == "20"


async def test_an_edit_of_one_limit_leaves_the_others_as_they_are(books: Books) -> None:
    """A file whose one edit lowered a limit used to take back every other limit that had been raised since."""
    first: Changed = {"account|max_open_orders": "10", "account|max_daily_orders": "1000"}
    await take(books, first, "one")
    await raised(books, {**first, "account|max_open_orders": "20"})
    change = await take(books, {**first, "account|max_daily_orders": "900"}, "two")
    assert change.proposal_id is None
    assert await limit_in_force(books, "account", "max_daily_orders") == "900"
    assert await limit_in_force(books, "account", "max_open_orders") == "20"


async def test_what_an_edit_loosens_waits_for_a_second_person(books: Books) -> None:
    await take(books, {"product|BTC-USD|max_open_orders": "10"}, "one")
    change = await take(books, {"product|BTC-USD|max_open_orders": "30"}, "two")
    assert change.proposal_id is not None
    assert await limit_in_force(books, "product|BTC-USD", "max_open_orders") == "10"
    await books.approve(change.proposal_id)
    assert await limit_in_force(books, "product|BTC-USD", "max_open_orders") == "30"


async def test_a_scope_that_two_people_added_stays_and_one_the_file_drops_goes(books: Books) -> None:
    await take(books, {}, "one")
    await raised(books, {"strategy|third|max_open_orders": "5"})
    change = await take(books, {"product|XRP-USD": None}, "two")
    assert change.changed == {"product|XRP-USD": None}
    assert "strategy|third" in (await books.ledger.snapshot(ACCOUNT)).limits
