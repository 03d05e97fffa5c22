#!lua name=tt_ledger
-- The shared state of pre-trade risk, part 1 of 6: exact numbers, books, the audit chain. ledger.py joins the parts.
--
-- KEYS[1] of every function is an account's base key `tt:{desk}:ACCOUNT`, or `tt:{desk}` for the whole desk (of tt_put:
-- the key itself). Every other key is derived from it; all share one hash tag, so that the desk's own counters move in
-- the same atomic step as an account's.
--
--   :state      hash    account | strategy|S | product|P -> trading state; cause|SCOPE -> why, where a rule tripped; epoch
--   :limits     hash    account | strategy|S | product|P | key|ID | key|* | group|G -> "name=hard:soft …"; calendar;
--                       version; baseline
--   :book       hash    every counter, integers as text: cash, reserved, fees, held, seq, head; then by scope, with the
--                       prefixes a | s|S | p|P | sp|S|P | k|KEY | g|GROUP (the desk's own without a prefix)
--   :reference  hash    P -> "bid ask set_ms num den bid_lots ask_lots anchor_mid2 anchor_ms volatile_until_ms"
--   :order:ID   hash    one order;  :open  zset of ids with a reservation, by time;  :fills:ID  set of trade ids
--   :resting:P:SIDE  zset  id -> limit in ticks;  :dup:…  string, for as long as the same order counts as a duplicate
--   :outbox     stream  orders and cancels on their way to the venue;  :alerts  stream, the newest 10,000
--   :audit      stream  every verdict and change, each entry with the hash of the one before
--   :opened     string  when the books were opened, in microseconds: what was filled before is in the opening positions
--   :environment  hash  of the desk: name (paper, sandbox, live), armed_until_ms, armed (JSON: by whom and why)
--   :venue_budget hash  of the desk: public, private -> when the next request to the venue is due, in microseconds
--   :approvals  hash    id -> JSON, what waits for a second person;  :override:FINGERPRINT  string, the id of an approved
--                       override of that very order, until it ends
--
-- A script that fails midway keeps what it has written. So a verb first reads, decides and adds up (a book's figures are
-- changed in memory); sound() finds keys of the wrong type; only finish() and what follows it write.
-- Lua numbers are doubles. Integers stay below 2^51, which add() holds for every sum, and go in and out as text.

local DESK = 'tt:{desk}'
local INTEGER_MAX = 2251799813685247
local EXACT_PRODUCT_MAX = 4503599627370496
local GENESIS = '0000000000000000000000000000000000000000'
local ALERTS_KEPT = 10000
local CACHED_MAX = 4096
local KEPT_DENIED_S = 86400
local KEPT_TERMINAL_S = 172800
local LEVELS = { ACTIVE = 0, REDUCING = 1, HALTED = 2, CANCEL_ALL = 3 }
local TERMINAL = { FILLED = true, CANCELLED = true, REJECTED = true, EXPIRED = true, DENIED = true }
local RELEASED = { CANCELLED = true, REJECTED = true, EXPIRED = true }
-- While a library is loaded, the standard libraries are not there: hence no math.huge.
local UNLIMITED = 1 / 0

-- Bases this very server process may take orders for. Not in the data on purpose: a server that was restarted, or a
-- replica that was promoted, knows of nothing that may have been lost, and refuses until somebody has reconciled it.
-- Base -> the epoch it was admitted in; data of an older epoch (an emptied or exchanged database) is not admitted.
local admitted = {}

local function is_admitted(base, epoch)
  return admitted[base] ~= nil and tonumber(epoch or '0') >= admitted[base]
end

local function text(n)
  return string.format('%d', n)
end

local function integer(s)
  local n = type(s) == 'string' and s:match('^%-?%d+$') and tonumber(s)
  if not n or n > INTEGER_MAX or n < -INTEGER_MAX then
    error('not an integer of the ledger: ' .. tostring(s))
  end
  return n
end

-- The same of what only the ledger writes, at a third of the cost: tonumber() takes "1e3" and " 7" too.
local function own_integer(s)
  local n = tonumber(s)
  if not n or n % 1 ~= 0 or n > INTEGER_MAX or n < -INTEGER_MAX then
    error('not an integer of the ledger: ' .. tostring(s))
  end
  return n
end

local function positive(s)
  local n = integer(s)
  if n <= 0 then
    error('expected an integer above 0, was ' .. s)
  end
  return n
end

-- a * b as a sum of two doubles, exactly (Dekker's product with Veltkamp's split: T. J. Dekker, "A floating-point
-- technique for extending the available precision", 1971).
local SPLIT = 134217729
local function two_product(a, b)
  local p = a * b
  local c = SPLIT * a
  local a_high = c - (c - a)
  local a_low = a - a_high
  c = SPLIT * b
  local b_high = c - (c - b)
  local b_low = b - b_high
  return p, ((a_high * b_high - p) + a_high * b_low + a_low * b_high) + a_low * b_low
end

-- floor(a * b / d) and whether a rest was left, exact for 0 <= a, b and 0 < d all below 2^51; nil from 2^51 - 1 on.
-- The quotient of the rounded product is off by little; what is left of the exact one, below 2^53, says by how much.
local function mul_div(a, b, d)
  local p = a * b
  if p < EXACT_PRODUCT_MAX then
    local rest = p % d
    local quotient = (p - rest) / d
    if quotient >= INTEGER_MAX then
      return nil
    end
    return quotient, rest > 0
  end
  if p / d >= INTEGER_MAX then
    return nil
  end
  local quotient = math.floor(p / d)
  local low, back, back_low
  p, low = two_product(a, b)
  back, back_low = two_product(quotient, d)
  local rest = (p - back) + (low - back_low)
  local off = math.floor(rest / d)
  quotient, rest = quotient + off, rest - off * d
  if quotient >= INTEGER_MAX then
    return nil
  end
  return quotient, rest > 0
end

local function mul_div_up(a, b, d)
  local quotient, has_rest = mul_div(a, b, d)
  if quotient and has_rest then
    return quotient + 1
  end
  return quotient
end

-- Micros that `lots` at `ticks` are worth, rounded up; num/den are micros of one lot at one tick.
local function value_up(lots, ticks, num, den)
  local scaled = mul_div_up(lots, num, 1)
  return scaled and mul_div_up(scaled, ticks, den)
end

-- The same rounded down.
local function value_down(lots, ticks, num, den)
  local scaled = mul_div(lots, num, 1)
  return scaled and (mul_div(scaled, ticks, den))
end

-- a / b in parts per million, rounded up; as much as can be counted where it is more, or b is not above 0.
local function ppm_up(a, b)
  return a <= 0 and 0 or b > 0 and mul_div_up(a, 1000000, b) or INTEGER_MAX
end

local function now_us()
  local t = redis.call('TIME')
  return tonumber(t[1]) * 1000000 + tonumber(t[2])
end

local function hash(key)
  local flat, map = redis.call('HGETALL', key), {}
  for i = 1, #flat, 2 do
    map[flat[i]] = flat[i + 1]
  end
  return map
end

-- What is computed from a text alone may be kept as long as one likes; this bounds how many are.
local function remembered(compute)
  local known, count = {}, 0
  return function(key)
    local value = known[key]
    if value == nil then
      if count >= CACHED_MAX then
        known, count = {}, 0
      end
      value = compute(key)
      known[key] = value
      count = count + 1
    end
    return value
  end
end

-- fields_of('p|BTC-USD|').open_orders == 'p|BTC-USD|open_orders', joined once.
local fields_of = remembered(function(prefix)
  return setmetatable({}, {
    __index = function(names, name)
      local joined = prefix .. name
      names[name] = joined
      return joined
    end,
  })
end)

-- Stops a verb before its first write where a key it will write has the wrong type; finish() looks at the rest.
local function sound(base)
  redis.call('XLEN', base .. ':outbox')
  redis.call('ZCARD', base .. ':open')
end

local function resting_key(base, product, side)
  return base .. ':resting:' .. product .. ':' .. side
end

-- ---------------------------------------------------------------------------------------------------------------------
-- books: fields read together, changed in memory, written together

-- name -> its place in a list of names, and as many falses; all belong together and are shared, so nobody changes them.
local function indexed(names)
  local index, blank = {}, {}
  for i = 1, #names do
    index[names[i]] = i
    blank[i] = false
  end
  return { names = names, index = index, blank = blank }
end

-- The fields named are kept by their place, so that no table grows while an order waits; others by name, as they come.
local function read_book(key, fields)
  return { key = key, fields = fields, index = fields.index, values = redis.call('HMGET', key, unpack(fields.names)),
    dirty = { unpack(fields.blank) }, others = {}, others_dirty = {} }
end

-- The field as it is now: a number once it has been used as one, else its text; false where there is none.
local function value_of(book, name)
  local i = book.index[name]
  if i then
    return book.values[i]
  end
  local value = book.others[name]
  if value == nil then
    value = redis.call('HGET', book.key, name)
    book.others[name] = value
  end
  return value
end

local function figure(book, name)
  local i = book.index[name]
  local value
  if i then
    value = book.values[i]
  else
    value = value_of(book, name)
  end
  if type(value) == 'number' then
    return value
  end
  local n = value and own_integer(value) or 0
  if i then
    book.values[i] = n
  else
    book.others[name] = n
  end
  return n
end

local function put_value(book, name, value)
  local i = book.index[name]
  if i then
    book.values[i], book.dirty[i] = value, true
  else
    book.others[name], book.others_dirty[name] = value, true
  end
end

local function add(book, name, n)
  if n ~= 0 then
    local sum = figure(book, name) + n
    if sum > INTEGER_MAX or sum < -INTEGER_MAX then
      error(name .. ' would be more than the ledger can count')
    end
    put_value(book, name, sum)
  end
end

local function write_book(book)
  local flat, n, names, dirty = {}, 0, book.fields.names, book.dirty
  for i = 1, #names do
    if dirty[i] then
      local value = book.values[i]
      flat[n + 1] = names[i]
      flat[n + 2] = type(value) == 'number' and text(value) or value
      n = n + 2
    end
  end
  for name in pairs(book.others_dirty) do
    local value = book.others[name]
    flat[n + 1] = name
    flat[n + 2] = type(value) == 'number' and text(value) or value
    n = n + 2
  end
  if n > 0 then
    redis.call('HSET', book.key, unpack(flat))
    book.dirty, book.others_dirty = { unpack(book.fields.blank) }, {}
  end
end

-- ---------------------------------------------------------------------------------------------------------------------
-- a verb's context: one base, its book, what will be written with it

-- `fields`: an indexed() list of names the verb will need, seq and head among them; others are read when asked for.
local CHAIN_FIELDS = indexed({ 'seq', 'head' })

local function begin(base, us, fields)
  local book = read_book(base .. ':book', fields or CHAIN_FIELDS)
  return { base = base, us = us, book = book, entries = {}, alerts = {}, states = {} }
end

-- The desk's context beside an account's; opened when first needed.
local function desk_of(ctx)
  if ctx.base == DESK then
    return ctx
  end
  ctx.desk = ctx.desk or begin(DESK, ctx.us)
  return ctx.desk
end

-- One audit entry, chained to the one before; `seq` numbers a base's entries without a gap. Returns seq.
local function audit(ctx, kind, id, by, data)
  local book = ctx.book
  local seq = figure(book, 'seq') + 1
  local body = type(data) == 'string' and data or cjson.encode(data)
  local us = text(ctx.us)
  local chain = redis.sha1hex(table.concat({ value_of(book, 'head') or GENESIS, text(seq), us, kind, id, by, body }, '\n'))
  put_value(book, 'seq', seq)
  put_value(book, 'head', chain)
  ctx.entries[#ctx.entries + 1] = { text(seq), us, kind, id, by, body, chain }
  return seq
end

-- level: SOFT (a limit's lower level was passed) or HARD (a rule tripped and holds until a person resumes).
local function alert(ctx, level, code, scope, value, limit, message, id)
  ctx.alerts[#ctx.alerts + 1] = { 'level', level, 'code', code, 'scope', scope, 'value', value, 'limit', limit,
    'message', message, 'id', id or '', 'us', text(ctx.us) }
end

-- The last thing that could fail, before the first write.
local function ready(ctx)
  if #ctx.entries > 0 then
    redis.call('XLEN', ctx.base .. ':audit')
  end
  if #ctx.alerts > 0 then
    redis.call('XLEN', ctx.base .. ':alerts')
  end
  if #ctx.states > 0 then
    redis.call('HLEN', ctx.base .. ':state')
  end
end

-- Everything a context holds, written: the only place where books, states, audit and alerts are.
local function finish(ctx)
  local desk = ctx.desk
  ready(ctx)
  if desk then
    finish(desk)
  end
  write_book(ctx.book)
  for _, change in ipairs(ctx.states) do
    redis.call('HSET', ctx.base .. ':state', change[1], change[2], 'cause|' .. change[1], change[3])
  end
  for _, e in ipairs(ctx.entries) do
    redis.call('XADD', ctx.base .. ':audit', '*', 'seq', e[1], 'us', e[2], 'kind', e[3], 'id', e[4], 'by', e[5],
      'data', e[6], 'chain', e[7])
  end
  for _, fields in ipairs(ctx.alerts) do
    redis.call('XADD', ctx.base .. ':alerts', 'MAXLEN', '~', ALERTS_KEPT, '*', unpack(fields))
  end
end

local function fenced(base, epoch)
  local stored = redis.call('HGET', base .. ':state', 'epoch')
  return not stored or tonumber(epoch) ~= tonumber(stored)
end

-- ---------------------------------------------------------------------------------------------------------------------
-- limit records and the calendar

local NOTHING = { hard = {}, soft = {}, word = {} }

local function limit_value(word)
  if word == 'unlimited' then
    return UNLIMITED
  end
  return word:match('^%d+$') and tonumber(word)
end

-- No value is above a limit that is missing: that it is missing denies by itself.
local ABOVE_ALL = {
  __index = function()
    return UNLIMITED
  end,
}

-- "name=hard:soft …" -> hard and soft as numbers by name (unlimited = infinite), and what is no number as a word.
local limits_in = remembered(function(record)
  local parsed = { hard = {}, soft = setmetatable({}, ABOVE_ALL), word = {}, missing = {} }
  for name, value in record:gmatch('(%S+)=(%S+)') do
    local first, second = value:match('^([^:]+):?(.*)$')
    local hard = limit_value(first or '')
    local soft = hard
    if second ~= '' then
      soft = limit_value(second or '')
    end
    if hard and soft then
      parsed.hard[name], parsed.soft[name] = hard, soft
    else
      parsed.word[name] = value
    end
  end
  return parsed
end)

local function limits_of(raw)
  return raw and limits_in(raw) or nil
end

-- What a scope's record must hold; what is missing denies every order the scope counts for.
local OF_EVERY = { 'max_order_notional', 'max_open_orders', 'max_open_notional', 'order_interval_us', 'max_daily_orders',
  'max_daily_turnover' }
local OF_EXPOSED = { 'max_gross_exposure', 'max_net_exposure', 'max_daily_loss', 'max_drawdown_ppm' }
local REQUIRED = {
  global = { limits = { OF_EVERY, OF_EXPOSED }, numbers = { 'order_burst' }, words = {} },
  account = {
    limits = { OF_EVERY, OF_EXPOSED, { 'max_leverage_ppm', 'max_concentration_ppm', 'max_order_to_trade',
      'message_interval_us', 'reference_halt_ms', 'max_clock_skew_ms', 'max_venue_errors', 'max_rejects' } },
    numbers = { 'order_burst', 'message_burst', 'cancel_reserve', 'taker_fee_ppm', 'market_buffer_ppm',
      'reference_stale_ms', 'duplicate_window_ms', 'venue_error_window_ms', 'reject_window_ms' },
    words = { 'self_trade' },
  },
  strategy = {
    limits = { OF_EVERY, OF_EXPOSED, { 'capital', 'max_order_to_trade', 'max_loss_streak', 'max_repeats', 'max_rejects' } },
    numbers = { 'order_burst', 'repeat_window_ms', 'reject_window_ms', 'duplicate_window_ms' },
    words = { 'short', 'hours', 'versions' },
  },
  product = {
    limits = { OF_EVERY, { 'max_order_lots', 'max_position_lots', 'max_strategy_position_lots', 'max_gross_exposure',
      'max_daily_loss', 'max_concentration_ppm', 'collar_ppm', 'max_spread_ppm', 'fat_finger_ppm', 'max_depth_ppm',
      'volatility_ppm' } },
    numbers = { 'order_burst', 'volatility_window_ms', 'volatility_halt_ms' },
    words = { 'restricted', 'hours', 'group' },
  },
  key = { limits = { OF_EVERY }, numbers = { 'order_burst' }, words = {} },
  group = { limits = { { 'max_gross_exposure' } }, numbers = {}, words = {} },
}

-- The names that are missing in a parsed record of this kind of scope, or, of those that must be numbers, unlimited.
local function missing_in(parsed, kind)
  local missing = parsed.missing[kind]
  if missing then
    return missing
  end
  local required = REQUIRED[kind]
  missing = {}
  for _, names in ipairs(required.limits) do
    for _, name in ipairs(names) do
      missing[#missing + 1] = not parsed.hard[name] and name or nil
    end
  end
  for _, name in ipairs(required.numbers) do
    missing[#missing + 1] = (parsed.hard[name] or UNLIMITED) == UNLIMITED and name or nil
  end
  for _, name in ipairs(required.words) do
    missing[#missing + 1] = not parsed.word[name] and name or nil
  end
  parsed.missing[kind] = missing
  return missing
end

-- "zone offset until offset until … offset" -> a list of {until second, offset}; the last one has no end.
local calendar_in = remembered(function(record)
  local numbers, spans = {}, {}
  for word in (record:match('^%S+ (.*)$') or '0'):gmatch('%S+') do
    numbers[#numbers + 1] = tonumber(word) or 0
  end
  for i = 1, #numbers, 2 do
    spans[#spans + 1] = { numbers[i + 1] or UNLIMITED, numbers[i] }
  end
  return spans
end)

-- Seconds since 1970 on the desk's own clock: UTC where no calendar is set.
local function local_seconds(us, calendar)
  local seconds = math.floor(us / 1000000)
  for _, span in ipairs(calendar and calendar_in(calendar) or {}) do
    if seconds < span[1] then
      return seconds + span[2]
    end
  end
  return seconds
end

local function day_number(us, calendar)
  return math.floor(local_seconds(us, calendar) / 86400)
end

-- Minute of the week on the desk's clock, Monday 00:00 = 0; day 0 (1970-01-01) was a Thursday.
local function minute_of_week(us, calendar)
  return math.floor(local_seconds(us, calendar) / 60 + 3 * 1440) % 10080
end

local hours_in = remembered(function(word)
  local ranges = {}
  for from, to in word:gmatch('(%d+)%-(%d+)') do
    ranges[#ranges + 1] = { tonumber(from), tonumber(to) }
  end
  return ranges
end)

local function within_hours(word, minute)
  if word == 'always' then
    return true
  end
  for _, range in ipairs(hours_in(word)) do
    if minute >= range[1] and minute < range[2] then
      return true
    end
  end
  return false
end

-- ---------------------------------------------------------------------------------------------------------------------
-- a scope's day: "number orders turnover pnl_start messages fills"

-- The record of today; a record of another day counts as empty, its PnL starting from what is booked now.
local function today(book, f, day)
  local packed = value_of(book, f.day)
  if packed then
    local number, orders, turnover, start, messages, fills =
      packed:match('^(%-?%d+) (%d+) (%d+) (%-?%d+) (%d+) (%d+)$')
    if tonumber(number) == day then
      return { tonumber(orders), tonumber(turnover), tonumber(start), tonumber(messages), tonumber(fills) }
    end
  end
  return { 0, 0, figure(book, f.pnl), 0, 0 }
end

local function put_today(book, f, day, record)
  put_value(book, f.day, string.format('%d %d %d %d %d %d', day, unpack(record)))
end

-- How often something has happened in its window, this time included: "start_ms count".
local function counted(book, name, now_ms, window_ms, times)
  local start, count = (value_of(book, name) or ''):match('^(%d+) (%d+)$')
  if not start or now_ms - tonumber(start) > window_ms then
    return now_ms, times
  end
  return tonumber(start), tonumber(count) + times
end

local function put_counted(book, name, start_ms, count)
  put_value(book, name, text(start_ms) .. ' ' .. text(count))
end
