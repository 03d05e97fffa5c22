"""Application execution: outbox -> venue -> acks and fills -> ledger. Starting up and recovering are one ``reconcile``.

Exactly one execution service writes for an account: it claims a new epoch when it starts, and the ledger refuses
whoever holds an older one. Every loop ends with an error rather than limping on; the health check then fails and
Serve starts a new replica, which claims, reconciles and goes on.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import sys
import time
from collections.abc import Awaitable, Callable, Mapping
from decimal import ROUND_FLOOR, Decimal
from typing import Any, Final

from ray import serve

from cluster.anchors import AnchorError, Anchors, BooksLost
from cluster.audit_log import AuditMoved
from cluster.ledger import Ledger, LedgerError, LedgerUnavailable, OutboxEntry, Reference, StaleEpoch
from cluster.limit_records import account_records, calendar_record, desk_records
from cluster.venue import (
    Venue,
    VenueError,
    VenueOrder,
    VenueRejected,
    VenueThrottled,
    VenueUnauthorised,
    VenueUnavailable,
    VenueUnknown,
)
from cluster.venue_endpoint import configured_endpoint
from conf.limits import LimitsFile, load_limits
from conf.settings import ExecutionSettings, load_secrets, load_settings
from strategies.model import (
    NS_PER_S,
    TERMINAL,
    Order,
    OrderStatus,
    OrderType,
    Product,
    Side,
    TimeInForce,
    micros_exact,
)

CONSUMER: Final = "execution"
SENDING_AT_ONCE: Final = 16
OUTBOX_WAIT_MS: Final = 500
START_BACKOFF_S: Final = 1.0
# Lost books stay lost until somebody decides what to do; asking more often would only fill the log.
LOST_BACKOFF_S: Final = 10.0
ANCHOR_INTERVAL_S: Final = 60.0
ARCHIVE_INTERVAL_S: Final = 3600.0
# A request that was sent may still be on its way to the venue; only after this long does "not found" mean "never came".
SETTLED_S: Final = 15.0
# Fills are read from a little before the newest one known, because the venue may list them late and out of order.
FILL_OVERLAP_NS: Final = 120 * NS_PER_S
# An order of ours was never created at the venue before it was reserved here, give or take the clocks.
CLOCK_MARGIN_NS: Final = 60 * NS_PER_S

logger = logging.getLogger("ray.serve")


class Execution:
    """Carries one account's orders to the venue and brings back what became of them."""

    def __init__(
        self, ledger: Ledger, venue: Venue, limits: LimitsFile, settings: ExecutionSettings, anchors: Anchors
    ) -> None:
        """Work for ``settings.account``, which is one of ``limits``."""
        self._ledger = ledger
        self._anchors = anchors
        self._venue = venue
        self._file = limits
        self._limits = limits.accounts[settings.account]
        self._settings = settings
        self._account = settings.account
        self._products: dict[str, Product] = {}
        self._epoch = 0
        self._newest_fill_ns = 0
        # Orders whose every attempt so far surely did not reach the venue: they may be sent without asking first.
        self._never_reached: set[str] = set()
        self._wake = asyncio.Event()
        self._counts = {"submitted": 0, "filled": 0, "rejected": 0, "cancelled": 0, "unknown": 0}
        self._reconciled_at = float("-inf")
        # Calls the venue has failed since the ledger was last told.
        self._venue_failures = 0

    async def run(self) -> None:
        """Start up, then work until something that must not be ignored happens (it is raised)."""
        await self._start()
        async with asyncio.TaskGroup() as group:
            group.create_task(self._every(self._settings.reference_interval_s, self._refresh_references))
            group.create_task(self._every(self._settings.reference_interval_s, self._beat))
            group.create_task(self._every(self._settings.reference_interval_s, self._watch))
            group.create_task(self._every(self._settings.reconcile_interval_s, self._reconcile_again))
            group.create_task(self._every(ANCHOR_INTERVAL_S, self._anchor))
            group.create_task(self._every(ARCHIVE_INTERVAL_S, self._archive))
            group.create_task(self._work_outbox())
            group.create_task(self._follow_orders())

    async def _start(self) -> None:
        """Products, limits, opening balances, prices; then reconcile, and only then take orders.

        Raises ``BooksLost`` where the ledger has forgotten what it once knew: nobody may trade on what is left.
        """
        await self._require_books()
        self._epoch = await self._ledger.claim(self._account, "execution")
        products = await asyncio.to_thread(self._venue.products)
        self._products = {product.product_id: product for product in products}
        await self._ledger.set_products(products)
        await self._set_limits()
        await self._set_references()
        await self._open_account()
        await self._ledger.outbox_open(self._account)
        await self.reconcile()
        await self._ledger.admit(self._account, self._epoch)
        await self._anchor()
        await self._beat()

    async def _require_books(self) -> None:
        for account in (None, self._account):
            await self._anchors.require(self._ledger, account)

    async def _anchor(self) -> None:
        """Note outside the server, signed, how far the audit has come."""
        for account in (None, self._account):
            await self._anchors.write(self._ledger, account)

    async def _archive(self) -> None:
        """Old audit entries leave the server's memory for Parquet; by name and in a process of its own, as a job is."""
        quiet, kept = asyncio.subprocess.DEVNULL, asyncio.subprocess.PIPE
        argv = (sys.executable, "-m", "jobs.archive", "--json")
        job = await asyncio.create_subprocess_exec(*argv, stdout=quiet, stderr=kept)
        _, errors = await job.communicate()
        if job.returncode:
            # What was not moved stays where it is, and is tried again.
            logger.error("the audit was not archived: %s", errors.decode(errors="replace")[-2000:])

    async def _set_limits(self) -> None:
        """Limits of the file, where the file has changed since: what is looser then waits for a second person."""
        calendar = calendar_record(self._file)
        own = account_records(self._limits, self._products, calendar)
        for account, records in ((None, desk_records(self._file)), (self._account, own)):
            # The calendar names the offsets of the years ahead and changes with the date, not with the file.
            lines = sorted(f"{scope} {record}" for scope, record in records.items() if record != calendar)
            baseline = hashlib.sha256("\n".join(lines).encode()).hexdigest()
            reason = "limits.yaml has changed"
            await self._ledger.set_limits(
                account, records, "limits.yaml", person="limits.yaml", reason=reason, baseline=baseline
            )

    async def _watch(self) -> None:
        """Tell the ledger how the venue does; a server that takes no orders yet (it is a new one) is reconciled."""
        failures, self._venue_failures = self._venue_failures, 0
        if failures:
            await self._ledger.venue_errors(self._account, self._epoch, failures)
        if "NOT_ADMITTED" in await self._ledger.watch(self._account, self._epoch):
            await self._require_books()
            try:
                await self.reconcile()
            except VenueError as error:
                self._failed("not reconciled", error)
            else:
                await self._ledger.admit(self._account, self._epoch)

    async def reconcile(self) -> None:
        """Bring the ledger to what the venue says of every order open here; the same at start and in service."""
        self._newest_fill_ns = 0
        await self._settle_open_orders()
        self._reconciled_at = time.monotonic()

    async def _reconcile_again(self) -> None:
        try:
            await self.reconcile()
        except VenueError as error:
            self._failed("not reconciled", error)
        for account in (self._account, None):
            if differences := await self._ledger.prove(account):
                logger.error("%d figures of the books of %s do not add up: halted", differences, account or "the desk")

    def _failed(self, what: str, error: VenueError) -> None:
        # A rejection is an answer; everything else says that the venue is not well.
        self._venue_failures += not isinstance(error, VenueRejected)
        logger.warning("%s: %s", what, error)

    # -- outbox --------------------------------------------------------------------------------------------------------

    async def _work_outbox(self) -> None:
        """Carry entries as they come, a bounded number at once; one that the venue keeps waiting holds up no other."""
        gate = asyncio.Semaphore(SENDING_AT_ONCE)

        async def carry(entry: OutboxEntry) -> None:
            try:
                await self._carry(entry)
            finally:
                gate.release()

        async with asyncio.TaskGroup() as group:
            # What was given to the one before us. Much of it may have to wait until it is settled what that one did
            # with it; it keeps its reservation meanwhile, so neither new orders nor the gate need wait for it.
            for entry in await self._ledger.outbox_read(self._account, CONSUMER, "0", 10_000):
                group.create_task(self._carry(entry))
            while True:
                for entry in await self._ledger.outbox_read(self._account, CONSUMER, ">", 64, OUTBOX_WAIT_MS):
                    await gate.acquire()
                    group.create_task(carry(entry))

    async def _carry(self, entry: OutboxEntry) -> None:
        """Do what one entry asks, again and again while the venue surely has not done it, then remove it."""
        backoff_s = 0.2
        while not await self._carried(entry):
            await asyncio.sleep(backoff_s)
            backoff_s = min(backoff_s * 2, 5.0)
        await self._ledger.outbox_done(self._account, [entry.entry_id])
        self._wake.set()

    async def _carried(self, entry: OutboxEntry) -> bool:
        fields = await self._ledger.order(self._account, entry.client_order_id)
        if fields is None or OrderStatus(fields["status"]) in TERMINAL:
            return True
        if entry.kind == "CANCEL":
            return await self._cancel(fields)
        first, status = await self._ledger.mark_sent(self._account, self._epoch, entry.client_order_id)
        if not first and status != OrderStatus.SENT:
            return True
        again = not first and entry.client_order_id not in self._never_reached
        if again and time.time() - int(fields["changed_us"]) / 1e6 < SETTLED_S:
            # An attempt before us may still be on its way; sending now could make it two.
            return False
        return await self._submit(order_of(entry.client_order_id, self._account, fields), again)

    async def _submit(self, order: Order, again: bool) -> bool:
        """Send one order. ``again``: an earlier attempt may have reached the venue, so it is asked first."""
        order_id = order.client_order_id
        try:
            known = await asyncio.to_thread(self._venue.order_by_client_id, order_id) if again else None
            venue_order_id = known.venue_order_id if known else await asyncio.to_thread(self._venue.create_order, order)
        except VenueRejected as error:
            await self._ledger.release(self._account, self._epoch, order_id, OrderStatus.REJECTED, str(error))
            self._counts["rejected"] += 1
            return True
        except VenueUnknown as error:
            self._failed(f"no answer about order {order_id}", error)
            await self._ledger.ack(self._account, self._epoch, order_id, OrderStatus.UNKNOWN)
            self._counts["unknown"] += 1
            return True
        except (VenueUnavailable, VenueThrottled, VenueUnauthorised) as error:
            self._failed(f"order {order_id} has not reached the venue yet", error)
            self._never_reached.add(order_id)
            return False
        await self._ledger.ack(self._account, self._epoch, order_id, OrderStatus.OPEN, venue_order_id)
        self._never_reached.discard(order_id)
        self._counts["submitted"] += 1
        return True

    async def _cancel(self, fields: Mapping[str, str]) -> bool:
        venue_order_id = fields.get("venue_order_id")
        if not venue_order_id:
            # Not acknowledged yet: the answer is on its way, or the settling of UNKNOWN orders will end it.
            return False
        try:
            await asyncio.to_thread(self._venue.cancel, [venue_order_id])
        except VenueError as error:
            self._failed(f"cancel of {venue_order_id} has not reached the venue yet", error)
            return isinstance(error, VenueRejected)
        return True

    # -- what the venue says -------------------------------------------------------------------------------------------

    async def _follow_orders(self) -> None:
        while True:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._wake.wait(), self._settings.poll_interval_s)
            self._wake.clear()
            try:
                await self._settle_open_orders()
            except VenueError as error:
                # Reservations stay as they are until the venue answers again; the next round asks anew.
                self._failed("the venue's orders and fills could not be read", error)

    async def _settle_open_orders(self) -> None:
        """Fills first, then endings: a reservation is freed only when every fill it stood for is booked."""
        ours = [f for f in await self._ledger.open_orders(self._account) if f["status"] != OrderStatus.RESERVED]
        if not ours:
            return
        since_ns = min(int(fields["created_us"]) for fields in ours) * 1000 - CLOCK_MARGIN_NS
        listed = await asyncio.to_thread(self._venue.orders, None, None, since_ns)
        theirs = {order.client_order_id: order for order in listed}
        await self._book_fills(max(since_ns, self._newest_fill_ns - FILL_OVERLAP_NS))
        for fields in ours:
            await self._settle(fields, theirs.get(fields["client_order_id"]))

    async def _book_fills(self, since_ns: int) -> None:
        for fill in await asyncio.to_thread(self._venue.fills, None, since_ns):
            product = self._products[fill.product_id]
            outcome, _ = await self._ledger.fill(self._account, self._epoch, fill, product)
            self._newest_fill_ns = max(self._newest_fill_ns, fill.ts_ns)
            self._counts["filled"] += outcome == "APPLIED"
            if outcome == "NOT_FOUND":
                logger.error("fill %s belongs to an order the ledger does not know: %s", fill.trade_id, fill)

    async def _settle(self, fields: Mapping[str, str], theirs: VenueOrder | None) -> None:
        order_id, status = fields["client_order_id"], OrderStatus(fields["status"])
        if theirs is None:
            age_s = time.time() - int(fields["changed_us"]) / 1e6
            if status in {OrderStatus.SENT, OrderStatus.UNKNOWN} and age_s > SETTLED_S:
                await self._settle_missing(order_id, status)
            return
        if status in {OrderStatus.SENT, OrderStatus.UNKNOWN}:
            await self._ledger.ack(self._account, self._epoch, order_id, OrderStatus.OPEN, theirs.venue_order_id)
        if theirs.status in TERMINAL and theirs.status is not OrderStatus.FILLED:
            booked = await self._ledger.order(self._account, order_id) or {}
            product = self._products[theirs.product_id]
            if int(booked.get("filled_lots", "0")) >= product.lots(theirs.filled_quantity):
                reason = theirs.reject_reason or "ended by the venue"
                done, _ = await self._ledger.release(self._account, self._epoch, order_id, theirs.status, reason)
                self._counts["cancelled"] += done

    async def _settle_missing(self, order_id: str, status: OrderStatus) -> None:
        """The venue does not list an order that was sent: ask for it by our id before its reservation is freed."""
        found = await asyncio.to_thread(self._venue.order_by_client_id, order_id)
        if found is None and status is OrderStatus.UNKNOWN:
            reason = "the venue gave no answer and does not know the order"
            await self._ledger.release(self._account, self._epoch, order_id, OrderStatus.REJECTED, reason)
            self._counts["rejected"] += 1
        elif found is not None:
            await self._ledger.ack(self._account, self._epoch, order_id, OrderStatus.OPEN, found.venue_order_id)

    # -- account and prices --------------------------------------------------------------------------------------------

    async def _refresh_references(self) -> None:
        try:
            await self._set_references()
        except VenueError as error:
            # Prices then grow old, and the ledger denies what it cannot value: nothing more is needed here.
            self._failed("no reference prices", error)

    async def _set_references(self) -> None:
        quotes = await asyncio.to_thread(self._venue.best_bid_ask, sorted(self._limits.products))
        references = []
        for q in quotes:
            if (product := self._products.get(q.product_id)) is not None and min(q.bid, q.ask) > 0:
                # A price between two ticks (an increment that has just changed) is widened, not a reason to stop.
                bid, ask = _down(q.bid, product.quote_increment), -_down(-q.ask, product.quote_increment)
                references.append(Reference(product, bid, ask, q.bid_size, q.ask_size))
        await self._ledger.set_references(self._account, [item for item in references if item.bid > 0])

    async def _open_account(self) -> None:
        balances = {b.currency: b.available + b.hold for b in await asyncio.to_thread(self._venue.accounts)}
        references = (await self._ledger.snapshot(self._account)).reference
        positions: dict[str, tuple[int, int]] = {}
        for product_id in self._limits.products:
            product = self._products[product_id]
            held = balances.get(product.base_currency, Decimal(0))
            lots = int(held // product.base_increment)
            if lots and product_id not in references:
                raise VenueUnavailable(f"no price of {product_id}, so the opening position cannot be valued")
            if lots:
                bid = product.price(int(references[product_id].split()[0]))
                positions[product_id] = (lots, micros_exact(product.quantity(lots) * bid))
        cash = balances.get(next(iter(self._products.values())).quote_currency, Decimal(0))
        await self._ledger.open_account(self._account, micros_exact(cash), positions, "execution")

    async def _beat(self) -> None:
        await self._ledger.beat(
            "execution",
            {
                "account": self._account,
                "epoch": self._epoch,
                "reconciled_s_ago": round(time.monotonic() - self._reconciled_at, 1),
                "outbox": await self._ledger.outbox_length(self._account),
                **self._counts,
            },
        )

    async def _every(self, interval_s: float, work: Callable[[], Awaitable[None]]) -> None:
        while True:
            await asyncio.sleep(interval_s)
            await work()


def order_of(client_order_id: str, account: str, fields: Mapping[str, str]) -> Order:
    """The order a ledger record stands for."""
    return Order(
        client_order_id=client_order_id,
        account=account,
        strategy=fields["strategy"],
        product_id=fields["product"],
        side=Side(fields["side"]),
        type=OrderType(fields["type"]),
        time_in_force=TimeInForce(fields["tif"]),
        quantity=Decimal(fields["quantity"]),
        limit_price=Decimal(fields["limit_price"]) if fields["limit_price"] else None,
        post_only=fields["post_only"] == "1",
    )


def _down(price: Decimal, increment: Decimal) -> Decimal:
    return (price / increment).to_integral_value(ROUND_FLOOR) * increment


async def supervise(make: Callable[[], Execution]) -> None:
    """Run execution for good: a server or venue that is away is waited for, a new epoch elsewhere ends this one."""
    while True:
        try:
            await make().run()
        except* StaleEpoch:
            raise
        except* (BooksLost, AnchorError) as group:
            logger.error("nothing is executed: %s", "; ".join(map(str, group.exceptions)))  # noqa: TRY400
            await asyncio.sleep(LOST_BACKOFF_S)
        except* (LedgerUnavailable, LedgerError, VenueError, AuditMoved):
            logger.exception("execution starts anew")
        await asyncio.sleep(START_BACKOFF_S)


@serve.deployment(name="execution")
class ExecutionService:
    """The replica: one supervised task."""

    def __init__(self) -> None:
        """Read settings and limits; what is missing stops the replica with its name."""
        settings = load_settings()
        secrets = load_secrets(settings)
        limits = load_limits(settings.limits_file)
        account = settings.execution.account
        if account not in limits.accounts:
            raise RuntimeError(f"execution.account: {account} has no limits in {settings.limits_file}")
        self._ledger = Ledger.connect(settings, secrets)

        anchors = Anchors.of(settings, secrets)

        def make() -> Execution:
            # The simulator's key may come after us, so the venue is made anew with each attempt.
            venue = Venue(configured_endpoint(settings, secrets))
            return Execution(self._ledger, venue, limits, settings.execution, anchors)

        self._task: asyncio.Task[Any] | None = None
        self._make = make

    async def check_health(self) -> None:
        """Start the task on the replica's own loop; afterwards fail when it has ended."""
        if self._task is None:
            self._task = asyncio.get_running_loop().create_task(supervise(self._make))
        if self._task.done():
            raise RuntimeError(f"execution ended: {self._task.exception()!r}")


app = ExecutionService.bind()  # type: ignore[attr-defined]
