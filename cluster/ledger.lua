#!lua name=tt_ledger
-- The shared state of pre-trade risk: one Redis Functions library, one atomic call a verb.
--
-- KEYS[1] of every function is the account's base key `tt:{ACCOUNT}` (of tt_put: the key itself); every other key is
-- derived from it, so all of an account's keys share one hash tag (one slot).
--
--   :state       hash    global | account | strategy|S | product|P -> trading state; epoch; generation
--   :limits      hash    account|NAME | strategy|S|NAME | product|P|NAME -> integer (micros, lots, micros of a second)
--                        or "unlimited"; version
--   :book        hash    cash, reserved, fees, seq, and per account "a", product "p|P", strategy "s|S", strategy and
--                        product "sp|S|P": |open_orders |open_notional |buy_lots |sell_lots (open, not yet filled)
--                        |cost |realised |fees
--   :positions   hash    P -> lots held by the account (negative = short);  :positions:S the same for a strategy
--   :reference   hash    P -> "bid ask set_ms num den" (ticks, ticks, server ms, micros a lot and tick as num/den)
--   :order:ID    hash    one order;   :open  zset of ids with a reservation, by time;   :fills:ID  set of trade ids
--   :outbox      stream  orders and cancels on their way to the venue;   :audit  stream, every verdict and change
--   :rate        hash    scope -> theoretical arrival time in microseconds (GCRA)
--
-- A script that fails midway keeps what it has written. So a verb first reads, decides and adds up; sound() and sums()
-- find what could still fail (a key of the wrong type, a figure that is no integer, a sum too large); only then it writes.
-- Lua numbers are doubles. Integers stay below 2^51, which sums() holds for every sum, and go in and out as text.

local INTEGER_MAX = 2251799813685247
local EXACT_PRODUCT_MAX = 4503599627370496
local KEPT_DENIED_S = 86400
local KEPT_TERMINAL_S = 172800
local LEVELS = { ACTIVE = 0, REDUCING = 1, HALTED = 2, CANCEL_ALL = 3 }
local TERMINAL = { FILLED = true, CANCELLED = true, REJECTED = true, EXPIRED = true, DENIED = true }
local RELEASED = { CANCELLED = true, REJECTED = true, EXPIRED = true }

local function text(n)
  return string.format('%.0f', n)
end

local function integer(s)
  local n = type(s) == 'string' and s:match('^%-?%d+$') and tonumber(s)
  if not n or n > INTEGER_MAX or n < -INTEGER_MAX then
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

-- floor(a * b / d) and whether a rest was left, exact for 0 <= a, b and 0 < d all below 2^51; nil from 2^51 - 1 on.
-- Schoolbook division of a * b by d, with digits of a as large as keep every product below 2^53.
local function mul_div(a, b, d)
  if a * b < EXACT_PRODUCT_MAX then
    local rest = (a * b) % d
    local quotient = (a * b - rest) / d
    if quotient >= INTEGER_MAX then
      return nil
    end
    return quotient, rest > 0
  end
  if a * b / d >= INTEGER_MAX then
    return nil
  end
  local base = 2
  while base * 2 * d < EXACT_PRODUCT_MAX do
    base = base * 2
  end
  local b_rest = b % d
  local whole = a * ((b - b_rest) / d)
  local digits, n = {}, a
  while n > 0 do
    local digit = n % base
    digits[#digits + 1] = digit
    n = (n - digit) / base
  end
  local quotient, rest = 0, 0
  for i = #digits, 1, -1 do
    local x = rest * base + digits[i] * b_rest
    rest = x % d
    quotient = quotient * base + (x - rest) / d
  end
  return whole + quotient, rest > 0
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

-- Stops a verb before its first write where a key it will write has the wrong type.
local function sound(base)
  redis.call('XLEN', base .. ':audit')
  redis.call('XLEN', base .. ':outbox')
  redis.call('ZCARD', base .. ':open')
  integer(redis.call('HGET', base .. ':book', 'seq') or '0')
end

local function plus(changes, field, n)
  changes[field] = (changes[field] or 0) + n
end

-- The new values of a hash's integers, as arguments of HSET; `changes` is field -> what is added. Writes nothing.
local function sums(key, changes)
  local fields = {}
  for field, n in pairs(changes) do
    if n ~= 0 then
      fields[#fields + 1] = field
    end
  end
  if #fields == 0 then
    return nil
  end
  local before, flat = redis.call('HMGET', key, unpack(fields)), {}
  for i, field in ipairs(fields) do
    local sum = integer(before[i] or '0') + changes[field]
    if math.abs(sum) > INTEGER_MAX then
      error(field .. ' would be more than the ledger can count')
    end
    flat[#flat + 1] = field
    flat[#flat + 1] = text(sum)
  end
  return flat
end

local function write(key, flat)
  if flat and #flat > 0 then
    redis.call('HSET', key, unpack(flat))
  end
end

-- One audit entry; `seq` numbers an account's entries without a gap. Returns seq.
local function audit(base, kind, id, by, data)
  local seq = redis.call('HINCRBY', base .. ':book', 'seq', 1)
  redis.call('XADD', base .. ':audit', '*', 'seq', seq, 'kind', kind, 'id', id, 'by', by, 'data', cjson.encode(data))
  return seq
end

local function fenced(base, epoch)
  local stored = redis.call('HGET', base .. ':state', 'epoch')
  return not stored or tonumber(epoch) ~= tonumber(stored)
end

-- ---------------------------------------------------------------------------------------------------------------------
-- reserve

local function reference_of(base, product)
  local packed = redis.call('HGET', base .. ':reference', product)
  if not packed then
    return nil
  end
  local bid, ask, set_ms, num, den = packed:match('^(%d+) (%d+) (%d+) (%d+) (%d+)$')
  return {
    bid = integer(bid), ask = integer(ask), set_ms = integer(set_ms), num = integer(num), den = integer(den),
  }
end

local function denier(denials)
  return function(code, scope, value, limit, unit, message)
    denials[#denials + 1] = { code = code, scope = scope, value = value, limit = limit, unit = unit, message = message }
  end
end

-- A limit as a number; nil where it is "unlimited", and, with a denial, where it is missing or no number.
local function limit_of(limits, field, scope, deny)
  local limit = limits[field]
  if limit == 'unlimited' then
    return nil
  end
  if not limit or not limit:match('^%d+$') then
    local message = limit and 'limit ' .. field .. ' is not a number' or 'no limit ' .. field .. ' is set'
    deny('MISSING_LIMIT', scope, limit or '', '', '', message)
    return nil
  end
  return tonumber(limit)
end

-- A figure without which nothing can be decided, so that "unlimited" is no answer.
local function figure_of(limits, field, deny)
  if limits[field] == 'unlimited' then
    deny('MISSING_LIMIT', 'account', 'unlimited', '', '', 'limit ' .. field .. ' must be a number')
    return nil
  end
  return limit_of(limits, field, 'account', deny)
end

-- `value` nil: it could not be computed, which has its own denial; whether the limit is there is looked at all the same.
local function check_at_most(limits, field, scope, value, unit, code, deny, message)
  local limit = limit_of(limits, field, scope, deny)
  if limit and value and value > limit then
    deny(code, scope, text(value), text(limit), unit, message)
  end
end

local function state_levels(base, order, deny)
  local fields = { 'global', 'account', 'strategy|' .. order.strategy, 'product|' .. order.product }
  local values = redis.call('HMGET', base .. ':state', unpack(fields))
  local reducing = {}
  for i, field in ipairs(fields) do
    local level = values[i] and LEVELS[values[i]]
    if not level then
      deny('MISSING_STATE', field, '', '', '', 'no trading state is set for ' .. field)
    elseif level >= 2 then
      deny('TRADING_HALTED', field, values[i], 'ACTIVE', '', 'trading is halted for ' .. field)
    elseif level == 1 then
      reducing[#reducing + 1] = field
    end
  end
  return reducing
end

-- REDUCING lets through only what shrinks the position, the reducers already open counted: it never flips.
local function check_reducing(order, scopes, account_position, strategy_position, book, deny)
  for _, scope in ipairs(scopes) do
    local of_strategy = scope:sub(1, 9) == 'strategy|'
    local position = of_strategy and strategy_position or account_position
    local prefix = of_strategy and ('sp|' .. order.strategy .. '|' .. order.product) or ('p|' .. order.product)
    local side = order.side == 'SELL' and '|sell_lots' or '|buy_lots'
    local open = integer(book[prefix .. side] or '0')
    local room = math.max(order.side == 'SELL' and position or 0 - position, 0)
    if order.lots + open > room then
      deny('REDUCE_ONLY_MODE', scope, text(order.lots + open), text(room), 'lots',
        'only orders that reduce the position are taken for ' .. scope)
    end
  end
end

-- Price the order is valued at, in ticks: the worst it can reasonably be executed at. nil (and a denial) where none is
-- to be trusted.
local function price_of(order, ref, now_ms, stale_ms, limits, deny)
  local scope = 'product|' .. order.product
  local buffer = figure_of(limits, 'account|market_buffer_ppm', deny)
  if not ref then
    deny('MISSING_REFERENCE', scope, '', '', '', 'no reference price is known for ' .. order.product)
    return order.ticks
  end
  if stale_ms and now_ms - ref.set_ms > stale_ms then
    deny('STALE_REFERENCE', scope, text(now_ms - ref.set_ms), text(stale_ms), 'ms', 'the reference price is too old')
    return order.ticks
  end
  if order.side == 'SELL' then
    -- A sell with a limit below the market is executed at the market: valued at its limit it would pass as small.
    return math.max(order.ticks or 0, ref.bid)
  end
  return order.ticks or (buffer and mul_div_up(ref.ask, 1000000 + buffer, 1000000))
end

local function check_sizes(order, limits, book, account_position, deny)
  local n, p, s = order.notional, 'product|' .. order.product, 'strategy|' .. order.strategy
  check_at_most(limits, 'account|max_order_notional', 'account', n, 'micros', 'NOTIONAL_EXCEEDS_MAX', deny, 'order notional')
  check_at_most(limits, p .. '|max_order_notional', p, n, 'micros', 'NOTIONAL_EXCEEDS_MAX', deny, 'order notional')
  check_at_most(limits, s .. '|max_order_notional', s, n, 'micros', 'NOTIONAL_EXCEEDS_MAX', deny, 'order notional')
  local open = function(scope) return integer(book[scope .. '|open_orders'] or '0') + 1 end
  check_at_most(limits, 'account|max_open_orders', 'account', open('a'), 'orders', 'MAX_OPEN_ORDERS', deny, 'open orders')
  check_at_most(limits, p .. '|max_open_orders', p, open('p|' .. order.product), 'orders', 'MAX_OPEN_ORDERS', deny, 'open orders')
  check_at_most(limits, s .. '|max_open_orders', s, open('s|' .. order.strategy), 'orders', 'MAX_OPEN_ORDERS', deny, 'open orders')
  local after
  if order.side == 'BUY' then
    after = account_position + integer(book['p|' .. order.product .. '|buy_lots'] or '0') + order.lots
  else
    after = integer(book['p|' .. order.product .. '|sell_lots'] or '0') + order.lots - account_position
  end
  check_at_most(limits, p .. '|max_position', p, after, 'lots', 'MAX_POSITION', deny, 'position with open orders')
  if after > INTEGER_MAX then
    deny('VALUE_TOO_LARGE', p, text(after), text(INTEGER_MAX), 'lots', 'the position would be more than can be counted')
  end
end

-- Sum of |position| at the middle of the market, rounded up. Products without a price to trust go into `unpriced`, and
-- the sum is then nil.
local function positions_value(base, positions, now_ms, stale_ms, unpriced)
  local total = 0
  for product, lots in pairs(positions) do
    local n = math.abs(integer(lots))
    if n > 0 then
      local ref = reference_of(base, product)
      local fresh = ref and stale_ms and now_ms - ref.set_ms <= stale_ms
      local value = fresh and value_up(n, math.ceil((ref.bid + ref.ask) / 2), ref.num, ref.den)
      if not value then
        unpriced[product] = true
      end
      total = total and value and total + value
    end
  end
  return total
end

local function check_gross(base, order, limits, book, held, held_by_strategy, now_ms, stale_ms, deny)
  local s = 'strategy|' .. order.strategy
  local scopes = {
    { 'account', held, 'a' },
    { s, held_by_strategy, 's|' .. order.strategy },
  }
  -- The order's own product has had its denial where its price was looked up.
  local unpriced = {}
  for _, scope in ipairs(scopes) do
    local value = positions_value(base, scope[2], now_ms, stale_ms, unpriced)
    local gross = value and order.notional and value + integer(book[scope[3] .. '|open_notional'] or '0') + order.notional
    check_at_most(limits, scope[1] .. '|max_gross_exposure', scope[1], gross, 'micros', 'MAX_GROSS', deny,
      'gross exposure with open orders')
    if gross and gross > INTEGER_MAX then
      deny('VALUE_TOO_LARGE', scope[1], text(gross), text(INTEGER_MAX), 'micros', 'gross exposure is more than can be counted')
    end
  end
  local names = {}
  for product in pairs(unpriced) do
    names[#names + 1] = product ~= order.product and product or nil
  end
  table.sort(names)
  for _, product in ipairs(names) do
    deny('STALE_REFERENCE', 'product|' .. product, '', '', '', 'a held product has no fresh reference price')
  end
end

-- Spot: a buy needs free cash for its worst value and fee, a sell needs free holdings.
local function check_funds(order, limits, book, account_position, deny)
  local fee_ppm = figure_of(limits, 'account|taker_fee_ppm', deny)
  if order.side == 'SELL' then
    order.reserved_cash = 0
    local free = account_position - integer(book['p|' .. order.product .. '|sell_lots'] or '0')
    if order.lots > free then
      deny('INSUFFICIENT_FUNDS', 'account', text(order.lots), text(math.max(free, 0)), 'lots', 'free holdings')
    end
    return
  end
  if not book['cash'] then
    deny('MISSING_STATE', 'account', '', '', '', 'the account has no cash balance yet')
    return
  end
  if not fee_ppm or not order.notional then
    return
  end
  order.reserved_cash = order.notional + (mul_div_up(order.notional, fee_ppm, 1000000) or INTEGER_MAX)
  local free = integer(book['cash']) - integer(book['reserved'] or '0')
  if order.reserved_cash > free then
    deny('INSUFFICIENT_FUNDS', 'account', text(order.reserved_cash), text(math.max(free, 0)), 'micros', 'free cash')
  end
end

-- The rates an order counts for: {scope, microseconds between orders, how many may come at once}.
local function rates_of(order, limits, deny)
  local rates = {}
  for _, scope in ipairs({ 'account', 'strategy|' .. order.strategy }) do
    local interval = limit_of(limits, scope .. '|order_interval_us', scope, deny)
    local burst = limit_of(limits, scope .. '|order_burst', scope, deny)
    if interval and burst then
      rates[#rates + 1] = { scope, interval, burst }
    end
  end
  return rates
end

-- GCRA (generic cell rate algorithm), one number a scope. Returns the fields to write if the order is accepted.
local function check_rates(base, rates, us, deny)
  local writes = {}
  for _, rate in ipairs(rates) do
    local scope, interval, burst = unpack(rate)
    local stored = tonumber(redis.call('HGET', base .. ':rate', scope) or '0')
    -- Never further ahead than a full burst: a clock that was set back, or a limit since raised, must not lock for long.
    local arrival = math.min(math.max(stored, us), us + burst * interval)
    if arrival - us > (burst - 1) * interval then
      deny('RATE_LIMIT', scope, text(math.ceil((arrival - us - (burst - 1) * interval) / 1000)), '0', 'ms',
        'too many orders; the value is the time until one is taken again')
    end
    writes[#writes + 1] = scope
    writes[#writes + 1] = text(arrival + interval)
  end
  return writes
end

local function verdict_of(order, verdict, denials)
  local answer = { client_order_id = order.id, verdict = verdict, product_id = order.product }
  if verdict == 'ACCEPTED' then
    answer.reserved_notional_micros = text(order.notional)
    answer.reserved_cash_micros = text(order.reserved_cash)
  else
    answer.denials = denials
  end
  return cjson.encode(answer)
end

local function write_denied(base, order, denials)
  local answer = verdict_of(order, 'DENIED', denials)
  local key = base .. ':order:' .. order.id
  redis.call('HSET', key, 'fingerprint', order.fingerprint, 'status', 'DENIED', 'answer', answer,
    'strategy', order.strategy, 'product', order.product, 'side', order.side, 'type', order.type, 'tif', order.tif,
    'quantity', order.quantity, 'limit_price', order.limit_price, 'created_us', text(order.us), 'by', order.by)
  redis.call('EXPIRE', key, KEPT_DENIED_S)
  audit(base, 'DENIED', order.id, order.by, { denials = denials, product = order.product, side = order.side,
    quantity = order.quantity, limit_price = order.limit_price, strategy = order.strategy })
  return { 'DENIED', answer }
end

-- Orders denied for their rate are not kept: the same id may come again, as it would after a 429 anywhere.
local function write_rate_denied(base, order, denials)
  write(base .. ':book', sums(base .. ':book', { denied_for_rate = 1 }))
  return { 'DENIED', verdict_of(order, 'DENIED', denials) }
end

-- Adds (sign 1) or takes back (sign -1) an order's open amounts in every scope it counts for.
local function count_open(changes, order, sign, lots, notional, orders)
  local side = order.side == 'SELL' and '|sell_lots' or '|buy_lots'
  for _, scope in ipairs({ 'a', 'p|' .. order.product, 's|' .. order.strategy }) do
    plus(changes, scope .. '|open_orders', sign * orders)
    plus(changes, scope .. '|open_notional', sign * notional)
  end
  plus(changes, 'p|' .. order.product .. side, sign * lots)
  plus(changes, 'sp|' .. order.strategy .. '|' .. order.product .. side, sign * lots)
end

local function write_accepted(base, order, rates)
  local answer = verdict_of(order, 'ACCEPTED')
  local changes = { reserved = order.reserved_cash }
  count_open(changes, order, 1, order.lots, order.notional, 1)
  write(base .. ':book', sums(base .. ':book', changes))
  write(base .. ':rate', rates)
  redis.call('HSET', base .. ':order:' .. order.id, 'fingerprint', order.fingerprint, 'status', 'RESERVED',
    'answer', answer, 'strategy', order.strategy, 'product', order.product, 'side', order.side, 'type', order.type,
    'tif', order.tif, 'quantity', order.quantity, 'limit_price', order.limit_price, 'post_only', order.post_only,
    'lots', text(order.lots), 'filled_lots', '0', 'filled_value', '0', 'fees', '0',
    'reserved_lots', text(order.lots), 'reserved_notional', text(order.notional), 'reserved_cash', text(order.reserved_cash),
    'notional', text(order.notional), 'cash', text(order.reserved_cash), 'created_us', text(order.us), 'changed_us', text(order.us),
    'by', order.by)
  redis.call('ZADD', base .. ':open', text(order.us), order.id)
  redis.call('XADD', base .. ':outbox', '*', 'kind', 'SUBMIT', 'id', order.id)
  audit(base, 'RESERVED', order.id, order.by, { strategy = order.strategy, product = order.product, side = order.side,
    lots = text(order.lots), notional = text(order.notional), cash = text(order.reserved_cash),
    quantity = order.quantity, limit_price = order.limit_price })
  return { 'ACCEPTED', answer }
end

-- KEYS[1] base.  ARGV[1]: a JSON list of id, fingerprint, strategy, product, side, type, tif, quantity, limit_price,
-- post_only, lots, ticks ('' = market), num, den, by (all text), and the list of denials found before.
-- Returns {ACCEPTED | DENIED | REPEATED | CONFLICT, the first answer as JSON}.
local function reserve(keys, argv)
  local base, args = keys[1], cjson.decode(argv[1])
  local known = redis.call('HMGET', base .. ':order:' .. args[1], 'fingerprint', 'answer')
  if known[1] then
    return { known[1] == args[2] and 'REPEATED' or 'CONFLICT', known[2] }
  end
  sound(base)
  local us = now_us()
  local now_ms = math.floor(us / 1000)
  local order = { id = args[1], fingerprint = args[2], strategy = args[3], product = args[4], side = args[5],
    type = args[6], tif = args[7], quantity = args[8], limit_price = args[9], post_only = args[10], by = args[15],
    us = us }
  local denials = args[16]
  local deny = denier(denials)
  if #denials > 0 then
    return write_denied(base, order, denials)
  end
  order.lots = positive(args[11])
  order.ticks = args[12] ~= '' and positive(args[12]) or nil
  local num, den = positive(args[13]), positive(args[14])

  local limits, book = hash(base .. ':limits'), hash(base .. ':book')
  local held, held_by_strategy = hash(base .. ':positions'), hash(base .. ':positions:' .. order.strategy)
  local account_position = integer(held[order.product] or '0')
  local strategy_position = integer(held_by_strategy[order.product] or '0')
  check_reducing(order, state_levels(base, order, deny), account_position, strategy_position, book, deny)
  local stale_ms = figure_of(limits, 'account|reference_stale_ms', deny)
  local ticks = price_of(order, reference_of(base, order.product), now_ms, stale_ms, limits, deny)
  order.notional = ticks and value_up(order.lots, ticks, num, den)
  if not order.notional and (ticks or #denials == 0) then
    deny('VALUE_TOO_LARGE', 'account', '', text(INTEGER_MAX), 'micros', 'the order is worth more than can be counted')
  end
  check_sizes(order, limits, book, account_position, deny)
  check_gross(base, order, limits, book, held, held_by_strategy, now_ms, stale_ms, deny)
  check_funds(order, limits, book, account_position, deny)
  local rates = rates_of(order, limits, deny)
  if #denials > 0 then
    return write_denied(base, order, denials)
  end
  local arrivals = check_rates(base, rates, us, deny)
  if #denials > 0 then
    return write_rate_denied(base, order, denials)
  end
  if not order.notional or not order.reserved_cash then
    error('an order without a value passed every check')
  end
  return write_accepted(base, order, arrivals)
end

-- ---------------------------------------------------------------------------------------------------------------------
-- the life of an order after its reservation

local function set_order(base, id, status, ...)
  redis.call('HSET', base .. ':order:' .. id, 'status', status, 'changed_us', text(now_us()), ...)
end

-- What a terminal order leaves: no reservation, and a record that is kept for a while.
local function close(base, id)
  redis.call('ZREM', base .. ':open', id)
  redis.call('EXPIRE', base .. ':order:' .. id, KEPT_TERMINAL_S)
  redis.call('EXPIRE', base .. ':fills:' .. id, KEPT_TERMINAL_S)
end

-- Takes back what is still reserved and ends the order.
local function free(base, id, order, status, reason, by)
  local changes = { reserved = -integer(order.reserved_cash) }
  count_open(changes, order, -1, integer(order.reserved_lots), integer(order.reserved_notional), 1)
  write(base .. ':book', sums(base .. ':book', changes))
  set_order(base, id, status, 'reserved_lots', '0', 'reserved_notional', '0', 'reserved_cash', '0', 'reason', reason)
  close(base, id)
  audit(base, status, id, by, { reason = reason })
end

-- ARGV: epoch, id. RESERVED -> SENT. Returns the status that holds now; only 'SENT' with the flag FIRST may be sent.
local function mark_sent(keys, args)
  local base, id = keys[1], args[2]
  if fenced(base, args[1]) then
    return { 'STALE_EPOCH' }
  end
  local status = redis.call('HGET', base .. ':order:' .. id, 'status')
  if status ~= 'RESERVED' then
    return { status or 'NOT_FOUND' }
  end
  sound(base)
  set_order(base, id, 'SENT')
  audit(base, 'SENT', id, 'execution', {})
  return { 'SENT', 'FIRST' }
end

-- ARGV: epoch, id, status (OPEN | UNKNOWN), venue_order_id. Moves a SENT or UNKNOWN order on.
local function ack(keys, args)
  local base, id, status = keys[1], args[2], args[3]
  if status ~= 'OPEN' and status ~= 'UNKNOWN' then
    return redis.error_reply('ERR an acknowledgement is OPEN or UNKNOWN, was ' .. status)
  end
  if fenced(base, args[1]) then
    return { 'STALE_EPOCH' }
  end
  local key = base .. ':order:' .. id
  local before = redis.call('HGET', key, 'status')
  sound(base)
  if args[4] ~= '' and before then
    redis.call('HSET', key, 'venue_order_id', args[4])
  end
  if not (before == 'SENT' or (before == 'UNKNOWN' and status == 'OPEN')) then
    return { before or 'NOT_FOUND' }
  end
  set_order(base, id, status)
  audit(base, status, id, 'execution', { venue_order_id = args[4] })
  return { status }
end

-- What a fill does to cost and realised profit of one position, in micros: what a rounding leaves stays in the cost.
local function cost_changes(changes, product, before, cost, side, lots, value)
  local closing = 0
  if (side == 'SELL' and before > 0) or (side == 'BUY' and before < 0) then
    closing = math.min(math.abs(before), lots)
  end
  local closed_value = closing == lots and value or mul_div(value, closing, lots)
  local closed_cost = closing == 0 and 0
    or closing == math.abs(before) and math.abs(cost)
    or mul_div(math.abs(cost), closing, math.abs(before))
  local sign = before > 0 and 1 or -1
  if closing > 0 then
    plus(changes, 'p|' .. product .. '|realised', sign * (closed_value - closed_cost))
    plus(changes, 'p|' .. product .. '|cost', -sign * closed_cost)
  end
  plus(changes, 'p|' .. product .. '|cost', (side == 'BUY' and 1 or -1) * (value - closed_value))
end

-- ARGV: epoch, id, trade_id, lots, value_micros, fee_micros, ts_ns, product, side. Moves reserved to position and cash,
-- once a trade id. Returns {APPLIED | DUPLICATE | NOT_FOUND | STALE_EPOCH, status of the order}.
local function fill(keys, args)
  local base, id, trade = keys[1], args[2], args[3]
  if fenced(base, args[1]) then
    return { 'STALE_EPOCH', '' }
  end
  local order = hash(base .. ':order:' .. id)
  if not order.lots then
    return { 'NOT_FOUND', '' }
  end
  if redis.call('SISMEMBER', base .. ':fills:' .. id, trade) == 1 then
    return { 'DUPLICATE', order.status }
  end
  local lots, value, fee = positive(args[4]), integer(args[5]), integer(args[6])
  if value < 0 or order.product ~= args[8] or order.side ~= args[9] then
    local meant = order.side .. ' of ' .. order.product
    return redis.error_reply('ERR fill ' .. trade .. ' does not belong to order ' .. id .. ', a ' .. meant)
  end
  sound(base)
  local total, filled = integer(order.lots), integer(order.filled_lots) + lots
  local left = math.max(integer(order.reserved_lots) - lots, 0)
  local notional = left == 0 and 0 or mul_div_up(integer(order.notional), left, total)
  local cash = left == 0 and 0 or mul_div_up(integer(order.cash), left, total)
  local ended = not TERMINAL[order.status] and filled >= total

  -- A buy's value leaves the cash, a sell's comes in; the fee always leaves.
  local changes = { cash = (order.side == 'BUY' and -value or value) - fee, fees = fee,
    reserved = cash - integer(order.reserved_cash) }
  plus(changes, 'p|' .. order.product .. '|fees', fee)
  count_open(changes, order, -1, integer(order.reserved_lots) - left, integer(order.reserved_notional) - notional,
    ended and 1 or 0)
  local before = integer(redis.call('HGET', base .. ':positions', order.product) or '0')
  local cost = integer(redis.call('HGET', base .. ':book', 'p|' .. order.product .. '|cost') or '0')
  cost_changes(changes, order.product, before, cost, order.side, lots, value)
  local signed = { [order.product] = order.side == 'BUY' and lots or -lots }
  local of_strategy = base .. ':positions:' .. order.strategy
  local book, positions = sums(base .. ':book', changes), sums(base .. ':positions', signed)
  local strategy_positions = sums(of_strategy, signed)
  local own = sums(base .. ':order:' .. id, { filled_lots = lots, filled_value = value, fees = fee })

  redis.call('SADD', base .. ':fills:' .. id, trade)
  write(base .. ':book', book)
  write(base .. ':positions', positions)
  write(of_strategy, strategy_positions)
  write(base .. ':order:' .. id, own)
  local status = TERMINAL[order.status] and order.status or ended and 'FILLED' or 'PARTIALLY_FILLED'
  local stamp = TERMINAL[order.status] and order.changed_us or text(now_us())
  redis.call('HSET', base .. ':order:' .. id, 'status', status, 'changed_us', stamp, 'reserved_lots', text(left),
    'reserved_notional', text(notional), 'reserved_cash', text(cash))
  audit(base, 'FILL', id, 'execution', { trade_id = trade, lots = text(lots), value = text(value), fee = text(fee),
    side = order.side, product = order.product, strategy = order.strategy, ts_ns = args[7], overfill = filled > total })
  if ended then
    audit(base, 'FILLED', id, 'execution', {})
  end
  if TERMINAL[status] then
    close(base, id)
  end
  return { 'APPLIED', status }
end

-- ARGV: epoch, id, status (CANCELLED | REJECTED | EXPIRED), reason, by. Frees the reservation, exactly once.
local function release(keys, args)
  local base, id = keys[1], args[2]
  if not RELEASED[args[3]] then
    return redis.error_reply('ERR an order ends CANCELLED, REJECTED or EXPIRED, was ' .. args[3])
  end
  if fenced(base, args[1]) then
    return { 'STALE_EPOCH' }
  end
  local order = hash(base .. ':order:' .. id)
  if not order.status then
    return { 'NOT_FOUND' }
  end
  if TERMINAL[order.status] then
    return { order.status }
  end
  sound(base)
  free(base, id, order, args[3], args[4], args[5])
  return { args[3], 'FIRST' }
end

-- ARGV: id, by. An order not yet sent is cancelled at once; otherwise the venue is asked through the outbox, once as
-- long as the question is on its way. Returns {status now, CANCELLED | REQUESTED | ALREADY}.
local function request_cancel(keys, args)
  local base, id = keys[1], args[1]
  local order = hash(base .. ':order:' .. id)
  if not order.status then
    return { 'NOT_FOUND', '' }
  end
  if TERMINAL[order.status] then
    return { order.status, 'ALREADY' }
  end
  sound(base)
  if order.status == 'RESERVED' then
    free(base, id, order, 'CANCELLED', 'cancelled before it was sent', args[2])
    return { 'CANCELLED', 'CANCELLED' }
  end
  local asked = order.cancel_entry
  if not asked or #redis.call('XRANGE', base .. ':outbox', asked, asked) == 0 then
    local entry = redis.call('XADD', base .. ':outbox', '*', 'kind', 'CANCEL', 'id', id)
    redis.call('HSET', base .. ':order:' .. id, 'cancel_entry', entry)
    audit(base, 'CANCEL_REQUESTED', id, args[2], {})
  end
  return { order.status, 'REQUESTED' }
end

-- ---------------------------------------------------------------------------------------------------------------------
-- the account

local function is_scope(scope)
  return scope == 'global' or scope == 'account' or scope:match('^strategy|[a-z0-9_]+$')
    or scope:match('^product|[A-Z0-9]+%-[A-Z0-9]+$')
end

-- ARGV: scope, state, by, reason. CANCEL_ALL also asks for the cancellation of every open order the scope covers.
local function set_state(keys, args)
  local base, scope, state = keys[1], args[1], args[2]
  if not LEVELS[state] then
    return redis.error_reply('ERR not a trading state: ' .. state)
  end
  if not is_scope(scope) then
    return redis.error_reply('ERR not a scope: ' .. scope)
  end
  sound(base)
  redis.call('HSET', base .. ':state', scope, state)
  local seq = audit(base, 'STATE', scope, args[3], { state = state, reason = args[4] })
  local asked = 0
  if state == 'CANCEL_ALL' then
    for _, id in ipairs(redis.call('ZRANGE', base .. ':open', 0, -1)) do
      local order = redis.call('HMGET', base .. ':order:' .. id, 'strategy', 'product')
      local covered = scope == 'global' or scope == 'account' or scope == 'strategy|' .. (order[1] or '')
        or scope == 'product|' .. (order[2] or '')
      -- An order whose record is damaged must not keep the others from being cancelled.
      if covered then
        local done, reply = pcall(request_cancel, keys, { id, args[3] })
        asked = asked + ((done and reply[1] ~= 'NOT_FOUND') and 1 or 0)
      end
    end
  end
  return { seq, asked }
end

-- ARGV as set_state. Sets the state only where that does not allow more: of two halts at once the stricter one stays.
-- Returns {audit number, cancels asked for, the state that holds now}.
local function tighten(keys, args)
  local base, scope, state = keys[1], args[1], args[2]
  sound(base)
  local before = redis.call('HGET', base .. ':state', scope)
  if before and LEVELS[state] and LEVELS[before] and LEVELS[before] > LEVELS[state] then
    return { audit(base, 'STATE', scope, args[3], { state = before, asked = state, reason = args[4] }), 0, before }
  end
  local done = set_state(keys, args)
  if done.err then
    return done
  end
  return { done[1], done[2], state }
end

-- Raises an error where `field` cannot be a limit with this value.
local function check_limit(field, value)
  if not field:match('^account|[%w_]+$') and not field:match('^%a+|[^|]+|[%w_]+$') then
    error('not a limit: ' .. field)
  end
  if value ~= 'unlimited' then
    local least = field:match('|order_interval_us$') and 1 or 0
    if integer(value) < least then
      error('limit ' .. field .. ' is too small: ' .. value)
    end
  end
end

-- ARGV: by, then field, value … replaces all limits at once and gives every scope named a state if it has none.
local function set_limits(keys, args)
  local base = keys[1]
  local version = integer(redis.call('HGET', base .. ':limits', 'version') or '0') + 1
  local before, changed, named = hash(base .. ':limits'), {}, {}
  for i = 2, #args, 2 do
    check_limit(args[i], args[i + 1])
    if before[args[i]] ~= args[i + 1] then
      changed[args[i]] = args[i + 1]
    end
    before[args[i]] = nil
    local scope = args[i]:match('^(%a+|[^|]+)|')
    if scope then
      named[scope] = true
    end
  end
  before['version'] = nil
  if next(changed) == nil and next(before) == nil then
    return version - 1
  end
  sound(base)
  redis.call('HLEN', base .. ':state')
  redis.call('DEL', base .. ':limits')
  for i = 2, #args, 2 do
    redis.call('HSET', base .. ':limits', args[i], args[i + 1])
  end
  redis.call('HSET', base .. ':limits', 'version', version)
  redis.call('HSETNX', base .. ':state', 'global', 'ACTIVE')
  redis.call('HSETNX', base .. ':state', 'account', 'ACTIVE')
  for scope in pairs(named) do
    redis.call('HSETNX', base .. ':state', scope, 'ACTIVE')
  end
  audit(base, 'LIMITS', text(version), args[1], { changed = changed })
  return version
end

-- ARGV: product, bid, ask, num, den (integers). The age counts from this server's clock.
local function set_reference(keys, args)
  local set_ms, flat = text(math.floor(now_us() / 1000)), {}
  for i = 1, #args, 5 do
    local bid, ask, num, den = integer(args[i + 1]), integer(args[i + 2]), integer(args[i + 3]), integer(args[i + 4])
    if bid <= 0 or ask < bid or num <= 0 or den <= 0 then
      return redis.error_reply('ERR reference of ' .. args[i] .. ': expected 0 < bid <= ask')
    end
    flat[#flat + 1] = args[i]
    flat[#flat + 1] = text(bid) .. ' ' .. text(ask) .. ' ' .. set_ms .. ' ' .. text(num) .. ' ' .. text(den)
  end
  for i = 1, #flat, 2 do
    redis.call('HSET', keys[1] .. ':reference', flat[i], flat[i + 1])
  end
  return set_ms
end

-- ARGV: by, cash_micros, then product, lots, cost_micros … Opens the books once; afterwards only fills change them.
local function open_account(keys, args)
  local base = keys[1]
  if redis.call('HEXISTS', base .. ':book', 'cash') == 1 then
    return 'ALREADY'
  end
  local opening, book, positions = {}, { 'cash', text(integer(args[2])) }, {}
  for i = 3, #args, 3 do
    local product, lots, cost = args[i], integer(args[i + 1]), integer(args[i + 2])
    if (lots == 0 and cost ~= 0) or lots * cost < 0 then
      error('opening cost of ' .. product .. ' does not go with its position')
    end
    opening[product] = { lots = args[i + 1], cost = args[i + 2] }
    positions[#positions + 1] = product
    positions[#positions + 1] = text(lots)
    book[#book + 1] = 'p|' .. product .. '|cost'
    book[#book + 1] = text(cost)
  end
  sound(base)
  redis.call('HLEN', base .. ':positions')
  write(base .. ':positions', positions)
  write(base .. ':book', book)
  audit(base, 'OPENED', 'account', args[1], { cash = args[2], positions = opening })
  return 'OPENED'
end

-- ARGV: by. A new epoch: whoever held the one before can no longer write. Returns it.
local function claim(keys, args)
  sound(keys[1])
  local epoch = redis.call('HINCRBY', keys[1] .. ':state', 'epoch', 1)
  audit(keys[1], 'EPOCH', text(epoch), args[1], {})
  return epoch
end

-- The outbox's group of readers, if it is not there yet. ARGV: its name.
local function open_outbox(keys, args)
  local reply = redis.pcall('XGROUP', 'CREATE', keys[1] .. ':outbox', args[1], '0', 'MKSTREAM')
  if type(reply) == 'table' and reply.err and not reply.err:find('BUSYGROUP', 1, true) then
    return reply
  end
  return redis.status_reply('OK')
end

-- Entries that are finished leave the outbox. ARGV: the group's name, then their ids.
local function finish_outbox(keys, args)
  for i = 2, #args do
    redis.call('XACK', keys[1] .. ':outbox', args[1], args[i])
    redis.call('XDEL', keys[1] .. ':outbox', args[i])
  end
  return redis.status_reply('OK')
end

-- KEYS[1] a hash. ARGV: field, value … Small facts of bounded number that must be written even when memory is full.
local function put(keys, args)
  for i = 1, #args, 2 do
    redis.call('HSET', keys[1], args[i], args[i + 1])
  end
  return #args / 2
end

-- Everything about an account at one instant: flat {name, flat hash} pairs.
local function snapshot(keys)
  local base = keys[1]
  local result = {}
  for _, name in ipairs({ 'state', 'limits', 'book', 'positions', 'reference' }) do
    result[#result + 1] = name
    result[#result + 1] = redis.call('HGETALL', base .. ':' .. name)
  end
  for _, scope in ipairs(redis.call('HKEYS', base .. ':state')) do
    if scope:sub(1, 9) == 'strategy|' then
      result[#result + 1] = 'positions:' .. scope:sub(10)
      result[#result + 1] = redis.call('HGETALL', base .. ':positions:' .. scope:sub(10))
    end
  end
  result[#result + 1] = 'now_ms'
  result[#result + 1] = { 'now_ms', text(math.floor(now_us() / 1000)) }
  return result
end

-- Adds one open order's reservation to `total`; nil where its record holds none.
local function add_reservation(total, base, id, queued)
  local o = hash(base .. ':order:' .. id)
  if not o.lots or TERMINAL[o.status] then
    return nil
  end
  plus(total, 'reserved', integer(o.reserved_cash))
  count_open(total, o, 1, integer(o.reserved_lots), integer(o.reserved_notional), 1)
  return o.status ~= 'RESERVED' or queued[id] or false
end

-- Sums every open order's reservation afresh, at one instant. Returns {flat {field, sum, …} in the book's field names,
-- with the number of ids in :open that hold no reservation (broken) and of RESERVED orders nobody will send (unqueued);
-- the book; the account's positions; flat {strategy, flat positions, …}}.
local function open_sums(keys)
  local base = keys[1]
  local total, broken, unqueued, queued = {}, 0, 0, {}
  for _, entry in ipairs(redis.call('XRANGE', base .. ':outbox', '-', '+')) do
    local fields = entry[2]
    for i = 1, #fields, 2 do
      queued[fields[i] == 'id' and fields[i + 1] or ''] = true
    end
  end
  for _, id in ipairs(redis.call('ZRANGE', base .. ':open', 0, -1)) do
    local read, safe = pcall(add_reservation, total, base, id, queued)
    if not read or safe == nil then
      broken = broken + 1
    elseif not safe then
      unqueued = unqueued + 1
    end
  end
  local flat = { 'broken', text(broken), 'unqueued', text(unqueued) }
  for field, n in pairs(total) do
    flat[#flat + 1] = field
    flat[#flat + 1] = text(n)
  end
  local book, strategies = redis.call('HGETALL', base .. ':book'), {}
  for i = 1, #book, 2 do
    local strategy = book[i]:match('^s|([^|]+)|open_orders$')
    if strategy then
      strategies[#strategies + 1] = strategy
      strategies[#strategies + 1] = redis.call('HGETALL', base .. ':positions:' .. strategy)
    end
  end
  return { flat, book, redis.call('HGETALL', base .. ':positions'), strategies }
end

local function register(name, callback, flags)
  redis.register_function { function_name = name, callback = callback, flags = flags }
end

-- allow-oom: what ends risk, or is bounded in number, must work with memory full. Only new orders and books wait.
local ALLOW_OOM, NO_WRITES = { 'allow-oom' }, { 'no-writes' }
register('tt_reserve', reserve, {})
register('tt_mark_sent', mark_sent, ALLOW_OOM)
register('tt_ack', ack, ALLOW_OOM)
register('tt_fill', fill, ALLOW_OOM)
register('tt_release', release, ALLOW_OOM)
register('tt_request_cancel', request_cancel, ALLOW_OOM)
register('tt_set_state', set_state, ALLOW_OOM)
register('tt_tighten', tighten, ALLOW_OOM)
register('tt_set_limits', set_limits, ALLOW_OOM)
register('tt_set_reference', set_reference, ALLOW_OOM)
register('tt_open_account', open_account, ALLOW_OOM)
register('tt_claim', claim, ALLOW_OOM)
register('tt_open_outbox', open_outbox, ALLOW_OOM)
register('tt_finish_outbox', finish_outbox, ALLOW_OOM)
register('tt_put', put, ALLOW_OOM)
register('tt_snapshot', snapshot, NO_WRITES)
register('tt_open_sums', open_sums, NO_WRITES)
