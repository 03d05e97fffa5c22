"""The ledger's server in this process: the real function library in Lua 5.1 over the store of ``store.py``.

The library runs unchanged: what Redis gives a function (``redis.call``, ``cjson``, ``redis.sha1hex`` …) is given here.
A restart keeps the data and forgets what the library kept in its own variables, as a server does.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from typing import Any, Final

from lupa.lua51 import LuaRuntime, lua_type

from tests.simulation.store import OK, Reply, ReplyError, Simple, Store

_NAME: Final = "tt_ledger"
# lua-cjson as Redis builds it: 14 digits, "/" escaped, an empty table is an object, tables in the order of pairs().
_SANDBOX: Final = r"""
local call, decode, sha1, register, null = ...
local tostring, format, concat, floor = tostring, string.format, table.concat, math.floor

redis = {
  sha1hex = sha1,
  error_reply = function(text) return { err = text:find(' ') and text or 'ERR ' .. text } end,
  status_reply = function(text) return { ok = text } end,
  register_function = register,
  pcall = call,
  call = function(...)
    local reply = call(...)
    if type(reply) == 'table' and reply.err then
      error(reply, 0)
    end
    return reply
  end,
}

local escapes = { ['"'] = '\\"', ['\\'] = '\\\\', ['/'] = '\\/', ['\b'] = '\\b', ['\f'] = '\\f', ['\n'] = '\\n',
  ['\r'] = '\\r', ['\t'] = '\\t' }
local function escaped(c)
  return escapes[c] or format('\\u%04x', c:byte())
end
local function quoted(s)
  return '"' .. s:gsub('[%c"\\/\127]', escaped) .. '"'
end

local function length_of(t)
  local highest = 0
  for key in pairs(t) do
    if type(key) ~= 'number' or key < 1 or floor(key) ~= key then
      return nil
    end
    highest = key > highest and key or highest
  end
  return highest > 0 and highest or nil
end

local encode
local function encoded_table(t)
  local parts, length = {}, length_of(t)
  if length then
    for i = 1, length do
      parts[i] = encode(t[i])
    end
    return '[' .. concat(parts, ',') .. ']'
  end
  for key, value in pairs(t) do
    if type(key) ~= 'string' and type(key) ~= 'number' then
      error('Cannot serialise table: table key must be a number or string')
    end
    local name = type(key) == 'number' and '"' .. format('%.14g', key) .. '"' or quoted(key)
    parts[#parts + 1] = name .. ':' .. encode(value)
  end
  return '{' .. concat(parts, ',') .. '}'
end

encode = function(value)
  local kind = type(value)
  if kind == 'string' then
    return quoted(value)
  elseif kind == 'number' then
    if value ~= value or value == 1 / 0 or value == -1 / 0 then
      error('Cannot serialise number: must not be NaN or Inf')
    end
    return format('%.14g', value)
  elseif kind == 'boolean' then
    return tostring(value)
  elseif kind == 'nil' or value == null then
    return 'null'
  elseif kind == 'table' then
    return encoded_table(value)
  end
  error('Cannot serialise ' .. kind .. ': type not supported')
end

cjson = { encode = encode, decode = decode, null = null }

-- Like Redis' own: what a function returns, with nils inside kept visible for the way back.
return function(callback, keys, args)
  return callback(keys, args)
end
"""


class FunctionMissing(ReplyError):
    """The library is not loaded."""


class LuaServer:
    """One server: a store and, once loaded, the library. ``now_us`` tells the time in microseconds."""

    def __init__(self, now_us: Callable[[], int]) -> None:
        self.store = Store(now_us)
        self.library = ""
        self._functions: dict[str, Any] = {}

    def restart(self) -> None:
        """Begin a new process on the same data."""
        if self.library:
            self._load(self.library)

    def run(self, *command: str) -> Reply:
        """Answer one command as a server does; raises ``ReplyError``."""
        name = command[0].upper()
        if name in {"FCALL", "FCALL_RO"}:
            return self._call(command[1], int(command[2]), list(command[3:]))
        if name == "FUNCTION":
            return self._function(command[1].upper(), list(command[2:]))
        if name == "INFO":
            return {"loading": 0, "used_memory": 1, "maxmemory": 100}
        return self.store.run(name, list(command[1:]))

    def _function(self, verb: str, args: list[str]) -> Reply:
        if verb == "LIST":
            return [["library_name", _NAME, "library_code", self.library]] if self.library else []
        if verb == "LOAD":
            self._load(args[-1])
            return _NAME
        if verb == "FLUSH":
            self.library, self._functions = "", {}
            return OK
        raise ReplyError(f"ERR the simulated server does not know FUNCTION {verb}")

    def _load(self, code: str) -> None:
        lua = LuaRuntime(unpack_returned_tuples=False)
        self._lua, self._table = lua, lua.table_from
        self._null = lua.eval("newproxy()")
        self._functions = {}
        self._run_callback = lua.execute(_SANDBOX, self._from_lua, self._decode, _sha1, self._register, self._null)
        lua.execute(code.partition("\n")[2], name="@" + _NAME)
        self.library = code

    def _register(self, described: Any) -> None:
        self._functions[described["function_name"]] = described["callback"]

    def _call(self, name: str, key_count: int, rest: list[str]) -> Reply:
        callback = self._functions.get(name)
        if callback is None:
            raise FunctionMissing("ERR Function not found")
        keys, args = self._table(rest[:key_count]), self._table(rest[key_count:])
        try:
            return self._to_reply(self._run_callback(callback, keys, args))
        except ReplyError:
            raise
        except Exception as error:  # noqa: BLE001 - whatever Lua raises is the server's error reply
            raise ReplyError(_message(error)) from None

    # -- between Lua and the store -------------------------------------------------------------------------------------

    def _from_lua(self, command: str, *given: Any) -> Any:
        """``redis.pcall``: errors come back as a table with err."""
        arguments = [one if type(one) is str else _text(one) for one in given]
        try:
            return self._to_lua(self.store.run(command, arguments))
        except ReplyError as error:
            return self._table({"err": str(error)})

    def _to_lua(self, reply: Reply) -> Any:
        kind = type(reply)
        if kind is str or kind is int:
            return reply
        if reply is None:
            return False
        if kind is list:
            if reply and type(reply[0]) is list:
                return self._table([self._to_lua(one) for one in reply])
            if None in reply or (len(reply) == 2 and type(reply[1]) is list):
                return self._table([self._to_lua(one) for one in reply])
            return self._table(reply)
        return self._table({"ok": str(reply)})

    def _to_reply(self, value: Any) -> Reply:
        kind = type(value)
        if kind is str:
            return value
        if kind is bool:
            return 1 if value else None
        if value is None:
            return None
        if kind in {int, float}:
            return int(value)
        if lua_type(value) != "table":
            raise ReplyError(f"ERR a function returned a {lua_type(value)}")
        if value["err"] is not None:
            raise ReplyError(str(value["err"]))
        if value["ok"] is not None:
            return Simple(value["ok"])
        return [self._to_reply(one) for one in value.values()]

    def _decode(self, text: Any) -> Any:
        if type(text) is not str:
            raise ReplyError("bad argument #1 to 'decode' (string expected)")
        return self._decoded(json.loads(text))

    def _decoded(self, value: Any) -> Any:
        if isinstance(value, dict):
            return self._table({key: self._decoded(one) for key, one in value.items()})
        if isinstance(value, list):
            return self._table([self._decoded(one) for one in value])
        return self._null if value is None else value


def _text(value: Any) -> str:
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return f"{value:.17g}"
    raise ReplyError("ERR Lua redis lib command arguments must be strings or integers")


def _sha1(text: str) -> str:
    return hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest()


def _message(error: Exception) -> str:
    """The text of what Lua raised: an error table's err, or a message with its place."""
    thrown: Any = error.args[0] if error.args else error
    if lua_type(thrown) == "table":
        return str(thrown["err"])
    return f"ERR {thrown}"
