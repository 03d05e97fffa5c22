"""When the dead man trips: stories of heartbeats, one look a second, on a clock of the test's own."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final

import pytest

from cluster.deadman import Phase, Trip, Watch, is_armed, trader_part, traders_of

LIMIT_S: Final = 15.0
BOT: Final = trader_part("main", "bot")


class Desk:
    """A ledger that answers or not, in which parts beat or not; its clock may be set."""

    def __init__(self) -> None:
        self.now_s = 1_000.0
        self.watch = Watch("main", LIMIT_S)
        self.beats: dict[str, dict[str, Any]] = {}
        self.server_ahead_s = 0.0

    def beat(self, part: str = "execution", **detail: Any) -> None:
        self.beats[part] = {"account": "main", **detail, "at_ms": self._server_ms()}

    def look(self, answers: bool = True) -> Trip | None:
        now_ms = self._server_ms()
        seen = {part: beat | {"age_ms": now_ms - beat["at_ms"]} for part, beat in self.beats.items()}
        return self.watch.look(self.now_s, seen if answers else None)

    def live(self, seconds: int, beating: Iterable[str] = (), answers: bool = True) -> Trip | None:
        """A look a second; these parts beat before each, where the ledger answers. The first trip ends it."""
        parts = {part: dict(self.beats.get(part, {})) for part in beating}
        for _ in range(seconds):
            self.now_s += 1
            for part, detail in parts.items() if answers else ():
                self.beat(part, **{name: value for name, value in detail.items() if name != "at_ms"})
            if trip := self.look(answers):
                return trip
        return None

    def _server_ms(self) -> int:
        return round((self.now_s + self.server_ahead_s) * 1000)


@pytest.fixture
def desk() -> Desk:
    """Execution has beaten for a while and is watched."""
    desk = Desk()
    desk.beat()
    assert desk.live(5, ["execution"]) is None
    assert desk.watch.phase is Phase.WATCHING
    return desk


def test_execution_that_beats_is_alive_and_one_that_is_silent_for_longer_than_the_limit_is_dead(desk: Desk) -> None:
    assert desk.live(100, ["execution"]) is None
    assert desk.live(int(LIMIT_S)) is None
    trip = desk.live(1)
    assert trip is not None
    assert (trip.part, trip.reason) == ("execution", "execution has been silent for 16.0 s")
    assert desk.watch.phase is Phase.CANCELLING


def test_one_silence_trips_once(desk: Desk) -> None:
    assert desk.live(60) is not None
    assert desk.live(1_000) is None
    desk.watch.tripped()
    assert desk.live(1_000) is None
    desk.watch.resumed()
    # Resumed by a person, and execution still does not beat: nothing new has died.
    assert desk.live(1_000) is None
    assert desk.live(2, ["execution"]) is None
    assert desk.watch.phase is Phase.WATCHING
    assert desk.live(60) is not None


def test_execution_that_beats_again_while_orders_are_cancelled_does_not_undo_the_trip(desk: Desk) -> None:
    desk.live(60)
    assert desk.live(30, ["execution"]) is None
    assert desk.watch.phase is Phase.CANCELLING


@pytest.mark.parametrize("beats", [False, True])
def test_nothing_trips_before_execution_has_beaten_since_the_start(beats: bool) -> None:
    desk = Desk()
    if beats:
        desk.beat()
    desk.beat(BOT, timeout_s=5)
    assert desk.live(1_000) is None
    assert desk.live(1_000, answers=False) is None
    assert desk.watch.phase is Phase.WAITING
    assert desk.watch.silence_s(desk.now_s) is None


def test_a_ledger_that_does_not_answer_for_longer_than_the_limit_trips(desk: Desk) -> None:
    assert desk.live(int(LIMIT_S), answers=False) is None
    trip = desk.live(1, answers=False)
    assert trip is not None
    assert (trip.part, trip.reason) == ("ledger", "the ledger has not answered for 16.0 s")


def test_a_ledger_that_comes_back_in_time_gives_execution_time_to_beat_again(desk: Desk) -> None:
    assert desk.live(14, answers=False) is None
    assert desk.live(10) is None
    assert desk.live(30, ["execution"]) is None


def test_a_ledger_that_comes_and_goes_does_not_hide_a_dead_execution(desk: Desk) -> None:
    for _ in range(4):
        if trip := desk.live(10, answers=False) or desk.live(1):
            break
    else:
        trip = None
    assert trip is not None
    assert trip.part == "execution"
    assert desk.watch.silence_s(desk.now_s) == 2 * LIMIT_S + 1


@pytest.mark.parametrize("step_s", [-3_600, 3_600])
def test_a_server_clock_that_was_set_neither_kills_execution_nor_keeps_it_alive(desk: Desk, step_s: float) -> None:
    desk.server_ahead_s += step_s
    assert desk.live(30, ["execution"]) is None
    desk.server_ahead_s += step_s
    assert desk.live(int(LIMIT_S)) is None
    assert desk.live(2) is not None


def test_a_ledger_that_falls_back_to_an_older_heartbeat_is_no_sign_of_life(desk: Desk) -> None:
    old = dict(desk.beats["execution"])
    assert desk.live(10, ["execution"]) is None
    desk.beats["execution"] = old
    assert desk.live(int(LIMIT_S)) is None
    assert desk.live(1) is not None


def test_the_heartbeat_of_another_account_is_not_taken_for_ours(desk: Desk) -> None:
    desk.beats["execution"] |= {"account": "other"}
    assert desk.live(30, ["execution"]) is not None


def test_a_trader_that_asked_for_it_is_held_to_its_own_limit(desk: Desk) -> None:
    desk.beat(BOT, timeout_s=5)
    assert desk.live(20, ["execution", BOT]) is None
    assert desk.live(5, ["execution"]) is None
    assert desk.watch.overdue(desk.now_s) == []
    trip = desk.live(1, ["execution"])
    assert trip is not None
    assert (trip.part, "trader bot has been silent for 6.0 s" in trip.reason) == (BOT, True)
    assert desk.watch.overdue(desk.now_s) == ["bot"]


def test_a_trader_that_has_ended_its_heartbeat_may_be_silent(desk: Desk) -> None:
    desk.beat(BOT, timeout_s=5)
    assert desk.live(3, ["execution", BOT]) is None
    desk.beat(BOT, timeout_s=5, ended=True)
    assert desk.live(60, ["execution"]) is None


def test_traders_are_not_blamed_for_a_ledger_that_was_away(desk: Desk) -> None:
    desk.beat(BOT, timeout_s=3)
    assert desk.live(5, ["execution", BOT]) is None
    assert desk.live(14, answers=False) is None
    assert desk.live(2, ["execution"]) is None
    assert desk.live(20, ["execution", BOT]) is None
    assert desk.live(4, ["execution"]) is not None


def test_a_silence_from_before_the_start_counts_once_execution_beats() -> None:
    desk = Desk()
    desk.beat()
    desk.beat(BOT, timeout_s=5)
    desk.now_s += 600
    assert desk.look() is None
    trip = desk.live(1, ["execution"])
    assert trip is not None
    assert trip.part == BOT


def test_traders_of_another_account_are_not_ours() -> None:
    beats: Mapping[str, Mapping[str, Any]] = {
        part: {"timeout_s": 1} for part in ("execution", BOT, trader_part("mainly", "bot"), trader_part("main", "a|b"))
    }
    assert set(traders_of("main", beats)) == {"bot", "a|b"}


@pytest.mark.parametrize("beat", [{}, {"timeout_s": "5"}, {"timeout_s": 0}, {"timeout_s": float("nan")}])
def test_what_names_no_limit_is_not_armed(beat: dict[str, Any]) -> None:
    assert not is_armed(beat)
