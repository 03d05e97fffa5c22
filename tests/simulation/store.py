"""A model of the ledger's server in memory: the commands that the ledger and its function library use, no others.

It keeps text only, tells the time it is given, and forgets expired keys as a server does. What it answers is compared
with a real server on random commands in ``test_store.py``; a command it does not know is an error, never a guess.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

Reply = Any
"""int, str, None, ``Simple`` (a status), or a list of these."""


class ReplyError(Exception):
    """An error the server answers with; its text begins with the server's code."""


class Simple(str):
    """A status such as OK, as opposed to a stored text."""

    __slots__ = ()


OK: Final = Simple("OK")
WRONG_TYPE: Final = "WRONGTYPE Operation against a key holding the wrong kind of value"
StreamId = tuple[int, int]
_LAST_ID: Final = (2**64 - 1, 2**64 - 1)
# What MAXLEN ~ leaves beyond its length at most: a node of the server's tree.
_NODE_ENTRIES: Final = 100


@dataclass(slots=True)
class Group:
    """A stream's readers: the last entry given out, and what each reader has not acknowledged."""

    last: StreamId
    pending: dict[StreamId, str] = field(default_factory=dict)


@dataclass(slots=True)
class Stream:
    """Entries by id, oldest first."""

    entries: dict[StreamId, list[str]] = field(default_factory=dict)
    last: StreamId = (0, 0)
    groups: dict[str, Group] = field(default_factory=dict)


class Sorted(dict[str, float]):
    """A sorted set: member -> score."""

    def ranked(self) -> list[tuple[str, float]]:
        """All of it by score, then by member."""
        return sorted(self.items(), key=lambda item: (item[1], item[0].encode()))


class Members(dict[str, None]):
    """A set that keeps the order its members came in, so that a run does not depend on hashing."""


class Store:
    """The data of one server. ``now_us`` tells its time in microseconds."""

    def __init__(self, now_us: Callable[[], int]) -> None:
        self.now_us = now_us
        self.data: dict[str, Any] = {}
        self.expires_ms: dict[str, int] = {}
        self._commands: dict[str, Callable[[list[str]], Reply]] = {
            name.removeprefix("_do_").upper(): getattr(self, name) for name in dir(self) if name.startswith("_do_")
        }

    def run(self, command: str, arguments: list[str]) -> Reply:
        """Answer one command; raises ``ReplyError``."""
        do = self._commands.get(command.upper())
        if do is None:
            raise ReplyError(f"ERR the simulated server does not know {command}")
        return do(arguments)

    # -- keys ----------------------------------------------------------------------------------------------------------

    def _find(self, key: str, kind: type) -> Any:
        """The value of a key, None where there is none; raises where it is of another kind."""
        due_ms = self.expires_ms.get(key)
        if due_ms is not None and due_ms <= self.now_us() // 1000:
            self._drop(key)
        value = self.data.get(key)
        if value is not None and type(value) is not kind:
            raise ReplyError(WRONG_TYPE)
        return value

    def _make(self, key: str, kind: type) -> Any:
        value = self._find(key, kind)
        if value is None:
            value = self.data[key] = kind()
        return value

    def _exists(self, key: str) -> bool:
        due_ms = self.expires_ms.get(key)
        if due_ms is not None and due_ms <= self.now_us() // 1000:
            self._drop(key)
        return key in self.data

    def _drop(self, key: str) -> None:
        self.data.pop(key, None)
        self.expires_ms.pop(key, None)

    def _do_time(self, _: list[str]) -> Reply:
        seconds, micros = divmod(self.now_us(), 1_000_000)
        return [str(seconds), str(micros)]

    def _do_ping(self, _: list[str]) -> Reply:
        return Simple("PONG")

    def _do_publish(self, _: list[str]) -> Reply:
        return 0

    def _do_flushall(self, _: list[str]) -> Reply:
        self.data.clear()
        self.expires_ms.clear()
        return OK

    def _do_keys(self, args: list[str]) -> Reply:
        if args != ["*"]:
            raise ReplyError("ERR the simulated server only lists all keys")
        return [key for key in list(self.data) if self._exists(key)]

    def _do_exists(self, args: list[str]) -> Reply:
        return sum(self._exists(key) for key in args)

    def _do_del(self, args: list[str]) -> Reply:
        found = [key for key in args if self._exists(key)]
        for key in found:
            self._drop(key)
        return len(found)

    def _do_type(self, args: list[str]) -> Reply:
        names = {dict: "hash", str: "string", Members: "set", Sorted: "zset", Stream: "stream"}
        return Simple(names[type(self.data[args[0]])] if self._exists(args[0]) else "none")

    def _do_expire(self, args: list[str]) -> Reply:
        return self._expire_at(args[0], self.now_us() // 1000 + _integer(args[1]) * 1000)

    def _do_pexpire(self, args: list[str]) -> Reply:
        return self._expire_at(args[0], self.now_us() // 1000 + _integer(args[1]))

    def _do_pexpireat(self, args: list[str]) -> Reply:
        return self._expire_at(args[0], _integer(args[1]))

    def _expire_at(self, key: str, due_ms: int) -> int:
        if not self._exists(key):
            return 0
        self.expires_ms[key] = due_ms
        self._exists(key)
        return 1

    def _do_persist(self, args: list[str]) -> Reply:
        return int(self._exists(args[0]) and self.expires_ms.pop(args[0], None) is not None)

    def _do_pttl(self, args: list[str]) -> Reply:
        if not self._exists(args[0]):
            return -2
        due_ms = self.expires_ms.get(args[0])
        return -1 if due_ms is None else due_ms - self.now_us() // 1000

    # -- texts ---------------------------------------------------------------------------------------------------------

    def _do_get(self, args: list[str]) -> Reply:
        return self._find(args[0], str)

    def _do_set(self, args: list[str]) -> Reply:
        key, value, *options = args
        due_ms, at = None, 0
        while at < len(options):
            word = options[at].upper()
            if word == "NX" and self._exists(key):
                return None
            if word == "XX" and not self._exists(key):
                return None
            if word in {"PX", "EX", "PXAT"}:
                at += 1
                amount = _integer(options[at]) * (1000 if word == "EX" else 1)
                due_ms = amount if word == "PXAT" else self.now_us() // 1000 + amount
            elif word not in {"NX", "XX"}:
                raise ReplyError("ERR syntax error")
            at += 1
        self._drop(key)
        self.data[key] = value
        if due_ms is not None:
            self.expires_ms[key] = due_ms
            self._exists(key)
        return OK

    def _do_incr(self, args: list[str]) -> Reply:
        return self._do_incrby([args[0], "1"])

    def _do_incrby(self, args: list[str]) -> Reply:
        total = _integer(self._find(args[0], str) or "0") + _integer(args[1])
        self.data[args[0]] = str(total)
        return total

    # -- hashes --------------------------------------------------------------------------------------------------------

    def _do_hget(self, args: list[str]) -> Reply:
        found = self._find(args[0], dict)
        return None if found is None else found.get(args[1])

    def _do_hmget(self, args: list[str]) -> Reply:
        found = self._find(args[0], dict)
        return [None] * (len(args) - 1) if found is None else [found.get(name) for name in args[1:]]

    def _do_hgetall(self, args: list[str]) -> Reply:
        found = self._find(args[0], dict) or {}
        return [part for pair in found.items() for part in pair]

    def _do_hkeys(self, args: list[str]) -> Reply:
        return list(self._find(args[0], dict) or {})

    def _do_hlen(self, args: list[str]) -> Reply:
        return len(self._find(args[0], dict) or {})

    def _do_hexists(self, args: list[str]) -> Reply:
        return int(args[1] in (self._find(args[0], dict) or {}))

    def _do_hset(self, args: list[str]) -> Reply:
        if len(args) < 3 or len(args) % 2 == 0:
            raise ReplyError("ERR wrong number of arguments for 'hset' command")
        found = self._make(args[0], dict)
        before = len(found)
        found.update(zip(args[1::2], args[2::2], strict=True))
        return len(found) - before

    def _do_hsetnx(self, args: list[str]) -> Reply:
        found = self._make(args[0], dict)
        if args[1] in found:
            return 0
        found[args[1]] = args[2]
        return 1

    def _do_hincrby(self, args: list[str]) -> Reply:
        found = self._make(args[0], dict)
        total = _integer(found.get(args[1], "0")) + _integer(args[2])
        found[args[1]] = str(total)
        return total

    def _do_hdel(self, args: list[str]) -> Reply:
        return self._removed(args[0], dict, args[1:])

    def _removed(self, key: str, kind: type, names: Sequence[str]) -> int:
        found = self._find(key, kind)
        if found is None:
            return 0
        gone = [name for name in dict.fromkeys(names) if name in found]
        for name in gone:
            del found[name]
        if not found:
            self._drop(key)
        return len(gone)

    # -- sets ----------------------------------------------------------------------------------------------------------

    def _do_sadd(self, args: list[str]) -> Reply:
        found = self._make(args[0], Members)
        before = len(found)
        found.update(dict.fromkeys(args[1:]))
        return len(found) - before

    def _do_srem(self, args: list[str]) -> Reply:
        return self._removed(args[0], Members, args[1:])

    def _do_sismember(self, args: list[str]) -> Reply:
        return int(args[1] in (self._find(args[0], Members) or {}))

    def _do_smembers(self, args: list[str]) -> Reply:
        return list(self._find(args[0], Members) or {})

    def _do_scard(self, args: list[str]) -> Reply:
        return len(self._find(args[0], Members) or {})

    # -- sorted sets ---------------------------------------------------------------------------------------------------

    def _do_zadd(self, args: list[str]) -> Reply:
        scores = [_number(text) for text in args[1::2]]
        found = self._make(args[0], Sorted)
        before = len(found)
        found.update(zip(args[2::2], scores, strict=True))
        return len(found) - before

    def _do_zrem(self, args: list[str]) -> Reply:
        return self._removed(args[0], Sorted, args[1:])

    def _do_zcard(self, args: list[str]) -> Reply:
        return len(self._find(args[0], Sorted) or {})

    def _do_zscore(self, args: list[str]) -> Reply:
        score = (self._find(args[0], Sorted) or {}).get(args[1])
        return None if score is None else _plain(score)

    def _do_zrange(self, args: list[str]) -> Reply:
        return self._ranked(args, backwards=False)

    def _do_zrevrange(self, args: list[str]) -> Reply:
        return self._ranked(args, backwards=True)

    def _ranked(self, args: list[str], backwards: bool) -> list[str]:
        key, first, last, *options = args
        words = [option.upper() for option in options]
        if any(word != "WITHSCORES" for word in words):
            raise ReplyError("ERR the simulated server ranks by index only")
        found = self._find(key, Sorted)
        ranked = [] if found is None else found.ranked()[:: -1 if backwards else 1]
        part = ranked[_slice(_integer(first), _integer(last), len(ranked))]
        return [text for member, score in part for text in ((member, _plain(score)) if words else (member,))]

    # -- streams -------------------------------------------------------------------------------------------------------

    def _do_xadd(self, args: list[str]) -> Reply:
        key, *rest = args
        keep = None
        if rest[0].upper() == "MAXLEN":
            about = rest[1] == "~"
            keep = _integer(rest[2 if about else 1])
            # A server trims by whole nodes then; how far beyond is its own affair.
            keep, rest = (keep + _NODE_ENTRIES if about else keep), rest[3 if about else 2 :]
        if rest[0] != "*":
            raise ReplyError("ERR the simulated server names entries itself")
        if len(rest) < 3 or len(rest) % 2 == 0:
            raise ReplyError("ERR wrong number of arguments for 'xadd' command")
        stream = self._make(key, Stream)
        now_ms = self.now_us() // 1000
        stream.last = (now_ms, 0) if now_ms > stream.last[0] else (stream.last[0], stream.last[1] + 1)
        stream.entries[stream.last] = rest[1:]
        while keep is not None and len(stream.entries) > keep:
            del stream.entries[next(iter(stream.entries))]
        return _id(stream.last)

    def _do_xlen(self, args: list[str]) -> Reply:
        stream = self._find(args[0], Stream)
        return 0 if stream is None else len(stream.entries)

    def _do_xrange(self, args: list[str]) -> Reply:
        return self._between(args[0], args[1], args[2], args[3:], backwards=False)

    def _do_xrevrange(self, args: list[str]) -> Reply:
        return self._between(args[0], args[2], args[1], args[3:], backwards=True)

    def _between(self, key: str, first: str, last: str, options: list[str], backwards: bool) -> list[Reply]:
        if options and options[0].upper() != "COUNT":
            raise ReplyError("ERR syntax error")
        low, high = _bound(first, low=True), _bound(last, low=False)
        stream = self._find(key, Stream)
        if stream is None:
            return []
        if low == high:
            ids = [low] if low in stream.entries else []
        else:
            ids = [entry for entry in stream.entries if low <= entry <= high]
        ids = ids[::-1] if backwards else ids
        if options:
            ids = ids[: _integer(options[1])]
        return [[_id(entry), list(stream.entries[entry])] for entry in ids]

    def _do_xdel(self, args: list[str]) -> Reply:
        stream = self._find(args[0], Stream)
        ids = [_exact(text) for text in args[1:]]
        return 0 if stream is None else sum(stream.entries.pop(entry, None) is not None for entry in ids)

    def _do_xtrim(self, args: list[str]) -> Reply:
        if args[1].upper() != "MINID" or len(args) != 3:
            raise ReplyError("ERR the simulated server trims by MINID only")
        stream, least = self._find(args[0], Stream), _exact(args[2])
        if stream is None:
            return 0
        gone = [entry for entry in stream.entries if entry < least]
        for entry in gone:
            del stream.entries[entry]
        return len(gone)

    def _do_xgroup(self, args: list[str]) -> Reply:
        verb, key, name, start, *options = args
        if verb.upper() != "CREATE" or start not in {"0", "$"}:
            raise ReplyError("ERR the simulated server only creates groups, from 0 or $")
        stream = self._find(key, Stream)
        if stream is None and not options:
            raise ReplyError("ERR The XGROUP subcommand requires the key to exist.")
        stream = self._make(key, Stream)
        if name in stream.groups:
            raise ReplyError("BUSYGROUP Consumer Group name already exists")
        stream.groups[name] = Group((0, 0) if start == "0" else stream.last)
        return OK

    def _do_xack(self, args: list[str]) -> Reply:
        stream = self._find(args[0], Stream)
        group = None if stream is None else stream.groups.get(args[1])
        ids = [_exact(text) for text in args[2:]]
        return 0 if group is None else sum(group.pending.pop(entry, None) is not None for entry in ids)

    def _do_xreadgroup(self, args: list[str]) -> Reply:
        """One stream; BLOCK is the caller's affair: without new entries the answer is None."""
        _, name, consumer, *options = args
        at_most = 2**62
        while options[0].upper() != "STREAMS":
            if options[0].upper() == "COUNT":
                at_most = _integer(options[1])
            options = options[2:]
        key, start = options[1:]
        stream = self._find(key, Stream)
        group = None if stream is None else stream.groups.get(name)
        if stream is None or group is None:
            raise ReplyError(f"NOGROUP No such key '{key}' or consumer group '{name}' in XREADGROUP with GROUP option")
        if start != ">":
            after = _exact(start)
            ids = sorted(entry for entry, owner in group.pending.items() if owner == consumer and entry > after)
            return [[key, [[_id(entry), stream.entries.get(entry)] for entry in ids[:at_most]]]]
        ids = [entry for entry in stream.entries if entry > group.last][:at_most]
        if not ids:
            return None
        group.last = ids[-1]
        group.pending |= dict.fromkeys(ids, consumer)
        return [[key, [[_id(entry), list(stream.entries[entry])] for entry in ids]]]


def _integer(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise ReplyError("ERR value is not an integer or out of range") from None


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise ReplyError("ERR value is not a valid float") from None


def _plain(score: float) -> str:
    return f"{score:.17g}"


def _slice(first: int, last: int, length: int) -> slice:
    first = max(first + length, 0) if first < 0 else first
    last = last + length if last < 0 else last
    return slice(first, max(last + 1, 0))


def _id(entry: StreamId) -> str:
    return f"{entry[0]}-{entry[1]}"


def _exact(text: str) -> StreamId:
    milliseconds, _, number = text.partition("-")
    return _integer(milliseconds), _integer(number or "0")


def _bound(text: str, low: bool) -> StreamId:
    if text in {"-", "+"}:
        return (0, 0) if text == "-" else _LAST_ID
    if text.startswith("("):
        before_ms, behind = _exact(text[1:])
        if low:
            return before_ms, behind + 1
        return (before_ms, behind - 1) if behind else (before_ms - 1, 2**64 - 1)
    milliseconds, _, number = text.partition("-")
    return _integer(milliseconds), _integer(number) if number else (0 if low else 2**64 - 1)
