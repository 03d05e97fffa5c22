"""Application execution: outbox -> venue -> acks and fills -> ledger. Starting up and recovering are one ``reconcile``.

Exactly one execution service writes for an account: it claims a new epoch when it starts, and the ledger refuses
whoever holds an older one. Every loop ends with an error rather than limping on; the health check then fails and
Serve starts a new replica, which claims, reconciles and goes on.

Its parts: ``carrying`` (outbox to venue), ``settling`` (venue to ledger), ``live_state`` (the channels), and
``cluster.reconcile`` (whether both sides agree).
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import sys
from collections.abc import Awaitable, Callable
from decimal import Decimal
from typing import Any, Final

from ray import serve

from cluster.anchors import AnchorError, Anchors, BooksLost
from cluster.audit_log import AuditMoved
from cluster.clock_check import Clock, HostClock, compare_clocks
from cluster.ledger import EnvironmentMixed, Ledger, LedgerError, LedgerUnavailable, Snapshot, StaleEpoch
from cluster.limit_records import account_records, calendar_record, desk_records
from cluster.reconcile import PASSING, Comparison, Verdict, compare
from cluster.venue import EndpointError, Venue, VenueError, VenueOrder, VenueUnavailable, check_key
from cluster.venue_budget import shared_venue
from cluster.venue_stream import VenueStream
from conf.limits import LimitsFile, load_limits
from conf.settings import ExecutionSettings, load_secrets, load_settings
from serve_apps.carrying import Carrier
from serve_apps.execution_context import Ask, ExecutionContext, VenueThreads
from serve_apps.live_state import LiveState, Stream, heard_or_later
from serve_apps.settling import Settler
from strategies.model import TradingState, micros_exact

START_BACKOFF_S: Final = 1.0
# Lost books stay lost until somebody decides what to do; asking more often would only fill the log.
LOST_BACKOFF_S: Final = 10.0
ANCHOR_INTERVAL_S: Final = 60.0
ARCHIVE_INTERVAL_S: Final = 3600.0
# A request that was sent may still be on its way to the venue; only after this long does "not found" mean "never came".
# Longer than a request may take; where more patience is set for those, as much longer.
SETTLED_S: Final = 6.0
USUAL_TIMEOUT_S: Final = 5.0
# While the channels speak, everything is looked at anew only this often.
SETTLE_ALL_S: Final = 5.0
# A difference is looked at again before it counts: the venue's lists are not all of one instant.
RECONCILE_TRIES: Final = 4
RECONCILE_AGAIN_S: Final = 1.0
RECONCILE_PAUSE_S: Final = 1.0
# The venue's lists may be behind one another, but not for so long.
EXPLAINED_S_MAX: Final = 60.0
EMPTY_INTERVAL_S: Final = 1.0
POLL_S_MIN: Final = 1.0
# A token of ours begins "now" by our clock, and the venue refuses one that has not begun (control 50: one second).
CLOCK_SKEW_S_MAX: Final = 1.0
# Every way out of a run is a matter of seconds; one that neither beats nor ends is stuck, and a new replica is not.
STUCK_S: Final = 30.0
CHANNELS: Final = ("user", "ticker")

logger = logging.getLogger("ray.serve")


class Execution:
    """Carries one account's orders to the venue and brings back what became of them."""

    def __init__(
        self,
        ledger: Ledger,
        venue: Venue,
        limits: LimitsFile,
        settings: ExecutionSettings,
        anchors: Anchors,
        *,
        ask: Ask | None = None,
        clock: Clock | None = None,
        stream: Callable[[list[str]], Stream] | None = None,
        allow_transfer_key: bool = False,
    ) -> None:
        """Work for ``settings.account``, which is one of ``limits``.

        ``ask(call, *arguments)`` awaits a synchronous call of the venue (on threads of its own where none is given),
        ``clock`` tells the time, and ``stream(product_ids)`` makes what is listened to; without one nothing is.
        """
        self._ledger = ledger
        self._anchors = anchors
        self._venue = venue
        self._file = limits
        self._limits = limits.accounts[settings.account]
        self._settings = settings
        self._account = settings.account
        self._threads = VenueThreads() if ask is None else None
        self._ask: Ask = ask or self._threads  # type: ignore[assignment]
        self._clock = clock or HostClock()
        self._make_stream = stream
        # A channel that is lost comes back; until then the requests are needed for orders too.
        self._poll_s = settings.poll_interval_s if stream is None else max(settings.poll_interval_s, POLL_S_MIN)
        self._allow_transfer_key = allow_transfer_key
        self._context = ExecutionContext(
            ledger,
            venue,
            settings.account,
            settings,
            self._ask,
            self._clock,
            settled_s=SETTLED_S + max(0.0, venue.endpoint.timeout_s - USUAL_TIMEOUT_S),
        )
        self._wake = asyncio.Event()
        self._live = LiveState(self._context, self._wake.set)
        self._settler = Settler(self._context)
        self._carrier = Carrier(self._context)
        self._reconciled_at = float("-inf")
        self._differing = asyncio.Event()
        # Since when a difference has been explained by what should be over in a moment.
        self._explained_since: dict[str, float] = {}
        # The scopes whose orders the venue has shown to be gone since they were to be cancelled.
        self._emptied: set[str] = set()
        # When the last heartbeat was written in this run; None where none is due.
        self._beaten_s: float | None = None

    @property
    def stuck(self) -> bool:
        """Whether it neither works nor has ended: heartbeats have stopped for longer than anything takes."""
        patience_s = STUCK_S + 2 * self._settings.reference_interval_s
        return self._beaten_s is not None and self._clock.monotonic_s() - self._beaten_s > patience_s

    async def run(self) -> None:
        """Start up, then work until something that must not be ignored happens (it is raised)."""
        try:
            await self._start()
            async with asyncio.TaskGroup() as group:
                group.create_task(self._every(self._settings.reference_interval_s, self._refresh_references))
                group.create_task(self._every(self._settings.reference_interval_s, self._beat))
                group.create_task(self._every(self._settings.reference_interval_s, self._watch))
                group.create_task(self._keep_reconciled())
                group.create_task(self._every(EMPTY_INTERVAL_S, self._empty_again))
                group.create_task(self._every(ANCHOR_INTERVAL_S, self._anchor))
                group.create_task(self._every(ARCHIVE_INTERVAL_S, self._archive))
                group.create_task(self._carrier.run())
                group.create_task(self._follow_orders())
                if self._make_stream is not None:
                    group.create_task(self._listen(self._make_stream(sorted(self._limits.products))))
        finally:
            self._beaten_s = None
            if self._threads is not None:
                self._threads.close()

    async def _start(self) -> None:
        """Products, limits, opening balances, prices; then reconcile, and only then take orders.

        Raises ``BooksLost`` where the ledger has forgotten what it once knew: nobody may trade on what is left;
        ``EnvironmentMixed`` and ``EndpointError`` where these books, this key and this venue do not belong together.
        """
        await self._require_books()
        await self._ledger.bind_environment(self._venue.endpoint.environment, "execution")
        await self._ask(check_key, self._venue, self._allow_transfer_key)
        context = self._context
        context.epoch = await self._ledger.claim(self._account, "execution")
        products = await self._ask(self._venue.products)
        context.products = {product.product_id: product for product in products}
        await self._ledger.set_products(products)
        await self._set_limits()
        await self._live.set_references(sorted(self._limits.products))
        await self._open_account()
        await self._ledger.outbox_open(self._account)
        await self.reconcile()
        await self._ledger.admit(self._account, context.epoch)
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
        own = account_records(self._limits, self._context.products, calendar)
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
        context = self._context
        failures, context.venue_failures = context.venue_failures, 0
        if failures:
            await self._ledger.venue_errors(self._account, context.epoch, failures)
        if "NOT_ADMITTED" in await self._ledger.watch(self._account, context.epoch):
            await self._require_books()
            try:
                await self.reconcile()
            except VenueError as error:
                context.failed("not reconciled", error)
            else:
                await self._ledger.admit(self._account, context.epoch)

    # -- agreement -----------------------------------------------------------------------------------------------------

    async def reconcile(self) -> Comparison:
        """Bring the ledger to what the venue says, then hold one against the other; at start and in service.

        What differs and is not explained, however often one looks, halts the account. Raises ``VenueError``.
        """
        standing: frozenset[tuple[str, str, str]] | None = None
        for attempt in range(RECONCILE_TRIES):
            if attempt:
                await asyncio.sleep(RECONCILE_AGAIN_S)
            await self._settler.settle()
            await self._settler.sweep()
            found = await compare(self._ledger, self._venue, self._account, self._ask)
            # While orders end all the time some look shows one that has just ended; only what every look shows counts.
            standing = found.broken if standing is None else standing & found.broken
            found = found.standing(standing)
            # What is on its way takes its time; only what should be over in a moment is looked at again.
            if not found.breaks and not any(line.why in PASSING for line in found.lines):
                break
        if breaks := [*found.breaks, *self._too_long_explained(found)]:
            logger.error("the books of %s and the venue differ: %s", self._account, "; ".join(breaks))
            await self._ledger.recon_break(self._account, self._context.epoch, breaks)
        await self._ledger.beat(f"reconcile|{self._account}", found.view())
        await self._check_clocks()
        self._reconciled_at = self._clock.monotonic_s()
        return found

    async def _check_clocks(self) -> None:
        """Clocks that differ are not believed: only reducing orders pass until a person has put them right."""
        clocks = await compare_clocks(self._venue.server_time_ns, self._ledger, self._ask, self._clock)
        skew = clocks.beyond(CLOCK_SKEW_S_MAX)
        if skew is not None:
            logger.error("the clocks differ: %s", skew)
            state, by = TradingState.REDUCING, "execution"
            await self._ledger.tighten(self._account, "account", state, by, f"the clocks differ: {skew}", "CLOCK_SKEW")

    def _too_long_explained(self, found: Comparison) -> list[str]:
        """Differences that were to be over in a moment and are not; what is on its way takes as long as it takes."""
        now_s = self._clock.monotonic_s()
        passing = [line for line in found.lines if line.verdict is Verdict.EXPLAINED and line.kind == "order"]
        names = [line.name for line in passing if line.why in PASSING]
        self._explained_since = {name: self._explained_since.get(name, now_s) for name in names}
        late = {name for name, since_s in self._explained_since.items() if now_s - since_s > EXPLAINED_S_MAX}
        return [str(line) for line in passing if line.name in late]

    async def _keep_reconciled(self) -> None:
        """Every half minute, and when a channel was lost: what was missed may be more than orders."""
        while True:
            await heard_or_later(self._differing, self._settings.reconcile_interval_s)
            await self._reconcile_again()
            # Channels that come and go must not use up the requests.
            await asyncio.sleep(RECONCILE_PAUSE_S)

    async def _reconcile_again(self) -> None:
        try:
            await self.reconcile()
        except VenueError as error:
            self._context.failed("not reconciled", error)
        for account in (self._account, None):
            if differences := await self._ledger.prove(account):
                logger.error("%d figures of the books of %s do not add up: halted", differences, account or "the desk")

    # -- orders that change --------------------------------------------------------------------------------------------

    async def _listen(self, stream: Stream) -> None:
        try:
            await self._live.listen(stream)
        finally:
            await stream.close()

    async def _follow_orders(self) -> None:
        """Settle what the channel tells at once; what it may not have told, every few seconds or as it is polled."""
        settled_at = self._clock.monotonic_s()
        while True:
            rhythm_s = SETTLE_ALL_S if self._live.heard else self._poll_s
            await heard_or_later(self._wake, max(0.0, settled_at + rhythm_s - self._clock.monotonic_s()))
            updates, resync = self._live.take()
            due = resync or self._clock.monotonic_s() - settled_at >= SETTLE_ALL_S
            try:
                # Where nothing is open there is nothing to poll for; what others do there may wait a little longer.
                due = due or (not self._live.heard and bool(await self._ledger.open_orders(self._account, 1)))
                await self._settler.settle_changed(updates)
                if resync:
                    self._differing.set()
                if due:
                    await self._settler.settle(thorough=resync)
                    settled_at = self._clock.monotonic_s()
            except VenueError as error:
                # Reservations stay as they are until the venue answers again; the next round asks anew.
                self._context.failed("the venue's orders and fills could not be read", error)
                self._live.give_back(updates, resync)
                await asyncio.sleep(self._settings.poll_interval_s)

    # -- cancel-all ----------------------------------------------------------------------------------------------------

    async def _empty_again(self) -> None:
        """Of every scope that is to be emptied: cancel what the venue itself lists, until it lists nothing."""
        snapshot = await self._ledger.snapshot(self._account)
        scopes = {scope for scope in _states(snapshot) if _states(snapshot)[scope] == TradingState.CANCEL_ALL}
        self._emptied &= scopes
        for scope in sorted(scopes - self._emptied):
            try:
                await self._empty(scope)
            except VenueError as error:
                self._context.failed(f"the orders of {scope} are not all cancelled yet", error)

    async def _empty(self, scope: str) -> None:
        """One round of cancels; when there is nothing left and nothing on its way, that is noted in the audit."""
        theirs: list[VenueOrder] = await self._ask(self._venue.open_orders)
        records = {f["client_order_id"]: f for f in await self._ledger.open_orders(self._account)}
        covered = [order for order in theirs if _covers(scope, order, records.get(order.client_order_id))]
        if covered:
            logger.warning("%d orders of %s are cancelled at the venue", len(covered), scope)
            await self._ask(self._venue.cancel, [order.venue_order_id for order in covered])
            return
        under_way = [f for f in records.values() if f["status"] in {"SENT", "UNKNOWN"} and _covered(scope, f)]
        if not under_way:
            figures = {"listed": len(theirs), "covered": 0, "under_way": 0}
            await self._ledger.emptied(self._account, self._context.epoch, scope, figures)
            self._emptied.add(scope)

    # -- account and prices --------------------------------------------------------------------------------------------

    async def _refresh_references(self) -> None:
        try:
            await self._live.set_references(sorted(self._limits.products))
        except VenueError as error:
            # Prices then grow old, and the ledger denies what it cannot value: nothing more is needed here.
            self._context.failed("no reference prices", error)

    async def _open_account(self) -> None:
        balances = {b.currency: b.available + b.hold for b in await self._ask(self._venue.accounts)}
        references = (await self._ledger.snapshot(self._account)).reference
        products = self._context.products
        positions: dict[str, tuple[int, int]] = {}
        for product_id in self._limits.products:
            product = products[product_id]
            # Two products of one currency (BTC-USD, BTC-EUR) share what is held; it is booked once.
            held = balances.pop(product.base_currency, Decimal(0))
            lots = int(held // product.base_increment)
            if lots and product_id not in references:
                raise VenueUnavailable(f"no price of {product_id}, so the opening position cannot be valued")
            if lots:
                bid = product.price(int(references[product_id].split()[0]))
                positions[product_id] = (lots, micros_exact(product.quantity(lots) * bid))
        cash = balances.get(next(iter(products.values())).quote_currency, Decimal(0))
        await self._ledger.open_account(self._account, micros_exact(cash), positions, "execution")

    async def _beat(self) -> None:
        await self._ledger.beat(
            "execution",
            {
                "account": self._account,
                "epoch": self._context.epoch,
                "reconciled_s_ago": round(self._clock.monotonic_s() - self._reconciled_at, 1),
                "outbox": await self._ledger.outbox_length(self._account),
                "channel": "heard" if self._live.heard else "polled",
                "channel_lost": self._live.lost,
                **self._context.counts,
            },
        )
        self._beaten_s = self._clock.monotonic_s()

    async def _every(self, interval_s: float, work: Callable[[], Awaitable[None]]) -> None:
        while True:
            await asyncio.sleep(interval_s)
            await work()


def _states(snapshot: Snapshot) -> dict[str, str]:
    """Every scope's own trading state, the desk's ``global`` too."""
    found = snapshot.desk_state | snapshot.state
    return {scope: state for scope, state in found.items() if not scope.startswith("cause|") and scope != "epoch"}


def _covers(scope: str, order: VenueOrder, fields: dict[str, str] | None) -> bool:
    """Whether an order that the venue lists is of a scope; one the ledger does not know is of its product only."""
    if scope in {"global", "account"} or scope == f"product|{order.product_id}":
        return True
    return fields is not None and _covered(scope, fields)


def _covered(scope: str, fields: dict[str, str]) -> bool:
    return scope in {"global", "account", f"strategy|{fields['strategy']}", f"product|{fields['product']}"}


async def supervise(make: Callable[[], Execution]) -> None:
    """Run execution for good: a server or venue that is away is waited for, a new epoch elsewhere ends this one."""
    while True:
        try:
            await make().run()
        except* StaleEpoch:
            raise
        except* (BooksLost, AnchorError, EnvironmentMixed, EndpointError) as group:
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
        self._execution: Execution | None = None

        def make() -> Execution:
            # The simulator's key may come after us, so the venue is made anew with each attempt.
            venue = shared_venue(settings, secrets, self._ledger)

            def listen(product_ids: list[str]) -> Stream:
                return VenueStream(venue, CHANNELS, product_ids)

            stream, allowed = listen if settings.execution.stream else None, settings.venue.allow_transfer_key
            self._execution = Execution(
                self._ledger, venue, limits, settings.execution, anchors, stream=stream, allow_transfer_key=allowed
            )
            return self._execution

        self._task: asyncio.Task[Any] | None = None
        self._make = make

    async def check_health(self) -> None:
        """Start the task on the replica's own loop; afterwards fail when it has ended or is stuck."""
        if self._task is None:
            self._task = asyncio.get_running_loop().create_task(supervise(self._make))
        if self._task.done():
            raise RuntimeError(f"execution ended: {self._task.exception()!r}")
        if self._execution is not None and self._execution.stuck:
            raise RuntimeError(f"execution is stuck: no heartbeat for more than {STUCK_S:g} s")


app = ExecutionService.bind()  # type: ignore[attr-defined]
