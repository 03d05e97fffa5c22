#!lua name=tt_ledger
-- The shared state of pre-trade risk: one Redis Functions library, one atomic call a verb.
--
-- KEYS[1] of every function is the account's base key `tt:{ACCOUNT}`; every other key is derived from it, so all of an
-- account's keys share one hash tag (one slot). A function validates everything before its first write, because a
-- script that fails midway keeps what it has written.
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
-- Lua numbers are doubles. Integers stay below 2^51 and go in and out as decimal strings; sums are made by HINCRBY.

local INTEGER_MAX = 2251799813685247
local EXACT_PRODUCT_MAX = 4503599627370496
local KEPT_DENIED_S = 86400
local KEPT_TERMINAL_S = 172800
local LEVELS = { ACTIVE = 0, REDUCING = 1, HALTED = 2, CANCEL_ALL = 3 }
local TERMINAL = { FILLED = true, CANCELLED = true, REJECTED = true, EXPIRED = true, DENIED = true }

local function text(n)
  return string.format('%.0f', n)
end

local function integer(s)
  local n = tonumber(s)
  if not n or n ~= math.floor(n) or n > INTEGER_MAX or n < -INTEGER_MAX then
    error('not an integer of the ledger: ' .. tostring(s))
  end
  return n
end

-- floor(a * b / d) and whether a rest was left, exact for 0 <= a, b and 0 < d all below 2^51; nil above 2^51.
-- Schoolbook division of a * b by d, with digits of a as large as keep every product below 2^53.
local function mul_div(a, b, d)
  if a * b < EXACT_PRODUCT_MAX then
    local rest = (a * b) % d
    return (a * b - rest) / d, rest > 0
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

local function add(key, field, n)
  if n ~= 0 then
    redis.call('HINCRBY', key, field, text(n))
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
    bid = tonumber(bid), ask = tonumber(ask), set_ms = tonumber(set_ms), num = tonumber(num), den = tonumber(den),
  }
end

-- Sum of |position| at the middle of the market, rounded up; nil and the product where a price is missing or stale.
local function positions_value(base, key, now_ms, stale_ms)
  local total = 0
  for product, lots in pairs(hash(key)) do
    local n = math.abs(tonumber(lots))
    if n > 0 then
      local ref = reference_of(base, product)
      if not ref or now_ms - ref.set_ms > stale_ms then
        return nil, product
      end
      local value = value_up(n, math.ceil((ref.bid + ref.ask) / 2), ref.num, ref.den)
      if not value then
        return nil, product
      end
      total = total + value
    end
  end
  return total
end

local function denier(denials)
  return function(code, scope, value, limit, unit, message)
    denials[#denials + 1] = { code = code, scope = scope, value = value, limit = limit, unit = unit, message = message }
  end
end

-- A limit as text; denies where it is missing. nil means "nothing to compare with".
local function limit_of(limits, field, scope, deny)
  local limit = limits[field]
  if not limit then
    deny('MISSING_LIMIT', scope, '', '', '', 'no limit ' .. field .. ' is set')
    return nil
  end
  if limit == 'unlimited' then
    return nil
  end
  return tonumber(limit)
end

local function check_at_most(limits, field, scope, value, unit, code, deny, message)
  local limit = limit_of(limits, field, scope, deny)
  if limit and value > limit then
    deny(code, scope, text(value), text(limit), unit, message)
  end
end

local function state_levels(base, order, deny)
  local fields = { 'global', 'account', 'strategy|' .. order.strategy, 'product|' .. order.product }
  local values = redis.call('HMGET', base .. ':state', unpack(fields))
  local reducing = nil
  for i, field in ipairs(fields) do
    local level = values[i] and LEVELS[values[i]]
    if not level then
      deny('MISSING_STATE', field, '', '', '', 'no trading state is set for ' .. field)
    elseif level >= 2 then
      deny('TRADING_HALTED', field, values[i], 'ACTIVE', '', 'trading is halted for ' .. field)
    elseif level == 1 then
      reducing = reducing or {}
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
    local open = tonumber(book[prefix .. side] or '0')
    local room = order.side == 'SELL' and position or -position
    if order.lots + open > room then
      deny('REDUCE_ONLY_MODE', scope, text(order.lots + open), text(math.max(room, 0)), 'lots',
        'only orders that reduce the position are taken for ' .. scope)
    end
  end
end

-- Price the order is valued at, in ticks; nil (and a denial) where there is none to trust.
local function price_of(order, ref, now_ms, limits, deny)
  local scope = 'product|' .. order.product
  local stale_ms = limit_of(limits, 'account|reference_stale_ms', 'account', deny)
  if not ref then
    deny('MISSING_REFERENCE', scope, '', '', '', 'no reference price is known for ' .. order.product)
    return nil
  end
  if stale_ms and now_ms - ref.set_ms > stale_ms then
    deny('STALE_REFERENCE', scope, text(now_ms - ref.set_ms), text(stale_ms), 'ms', 'the reference price is too old')
    return nil
  end
  if order.type ~= 'MARKET' then
    return order.ticks
  end
  if order.side == 'SELL' then
    return ref.bid
  end
  local buffer = limit_of(limits, 'account|market_buffer_ppm', 'account', deny)
  return buffer and mul_div_up(ref.ask, 1000000 + buffer, 1000000)
end

local function check_sizes(order, limits, book, account_position, deny)
  local n, p, s = order.notional, 'product|' .. order.product, 'strategy|' .. order.strategy
  check_at_most(limits, 'account|max_order_notional', 'account', n, 'micros', 'NOTIONAL_EXCEEDS_MAX', deny, 'order notional')
  check_at_most(limits, p .. '|max_order_notional', p, n, 'micros', 'NOTIONAL_EXCEEDS_MAX', deny, 'order notional')
  check_at_most(limits, s .. '|max_order_notional', s, n, 'micros', 'NOTIONAL_EXCEEDS_MAX', deny, 'order notional')
  local open = function(scope) return tonumber(book[scope .. '|open_orders'] or '0') + 1 end
  check_at_most(limits, 'account|max_open_orders', 'account', open('a'), 'orders', 'MAX_OPEN_ORDERS', deny, 'open orders')
  check_at_most(limits, p .. '|max_open_orders', p, open('p|' .. order.product), 'orders', 'MAX_OPEN_ORDERS', deny, 'open orders')
  check_at_most(limits, s .. '|max_open_orders', s, open('s|' .. order.strategy), 'orders', 'MAX_OPEN_ORDERS', deny, 'open orders')
  local after
  if order.side == 'BUY' then
    after = account_position + tonumber(book['p|' .. order.product .. '|buy_lots'] or '0') + order.lots
  else
    after = -(account_position - tonumber(book['p|' .. order.product .. '|sell_lots'] or '0') - order.lots)
  end
  check_at_most(limits, p .. '|max_position', p, after, 'lots', 'MAX_POSITION', deny, 'position with open orders')
end

local function check_gross(base, order, limits, book, now_ms, deny)
  local stale_ms = tonumber(limits['account|reference_stale_ms'] or '0')
  local scopes = {
    { 'account', 'account|max_gross_exposure', ':positions', 'a' },
    { 'strategy|' .. order.strategy, 'strategy|' .. order.strategy .. '|max_gross_exposure',
      ':positions:' .. order.strategy, 's|' .. order.strategy },
  }
  for _, scope in ipairs(scopes) do
    local held, unpriced = positions_value(base, base .. scope[3], now_ms, stale_ms)
    if held then
      local gross = held + tonumber(book[scope[4] .. '|open_notional'] or '0') + order.notional
      check_at_most(limits, scope[2], scope[1], gross, 'micros', 'MAX_GROSS', deny, 'gross exposure with open orders')
    else
      deny('STALE_REFERENCE', 'product|' .. unpriced, '', '', '', 'a held product has no fresh reference price')
    end
  end
end

-- Spot: a buy needs free cash for its worst value and fee, a sell needs free holdings.
local function check_funds(order, limits, book, account_position, deny)
  if order.side == 'SELL' then
    order.reserved_cash = 0
    local free = account_position - tonumber(book['p|' .. order.product .. '|sell_lots'] or '0')
    if order.lots > free then
      deny('INSUFFICIENT_FUNDS', 'account', text(order.lots), text(math.max(free, 0)), 'lots', 'free holdings')
    end
    return
  end
  local fee_ppm = limit_of(limits, 'account|taker_fee_ppm', 'account', deny)
  local fee = fee_ppm and mul_div_up(order.notional, fee_ppm, 1000000) or 0
  order.reserved_cash = order.notional + fee
  if not book['cash'] then
    deny('MISSING_STATE', 'account', '', '', '', 'the account has no cash balance yet')
    return
  end
  local free = tonumber(book['cash']) - tonumber(book['reserved'] or '0')
  if order.reserved_cash > free then
    deny('INSUFFICIENT_FUNDS', 'account', text(order.reserved_cash), text(math.max(free, 0)), 'micros', 'free cash')
  end
end

-- GCRA (generic cell rate algorithm), one number a scope. Returns the fields to write if the order is accepted.
local function check_rates(base, order, limits, us, deny)
  local writes = {}
  for _, scope in ipairs({ 'account', 'strategy|' .. order.strategy }) do
    local interval = limit_of(limits, scope .. '|order_interval_us', scope, deny)
    local burst = limit_of(limits, scope .. '|order_burst', scope, deny)
    if interval and burst then
      local arrival = math.max(tonumber(redis.call('HGET', base .. ':rate', scope) or '0'), us)
      if arrival - us > (burst - 1) * interval then
        deny('RATE_LIMIT', scope, text(math.ceil((arrival - us - (burst - 1) * interval) / 1000)), '0', 'ms',
          'too many orders; the value is the time until one is taken again')
      end
      writes[#writes + 1] = scope
      writes[#writes + 1] = text(arrival + interval)
    end
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

-- Orders denied for their rate are not kept: the same id may come again, as it would after a 429 anywhere.
local function write_denied(base, order, denials)
  local answer = verdict_of(order, 'DENIED', denials)
  for _, denial in ipairs(denials) do
    if denial.code == 'RATE_LIMIT' then
      redis.call('HINCRBY', base .. ':book', 'denied_for_rate', 1)
      return { 'DENIED', answer }
    end
  end
  local key = base .. ':order:' .. order.id
  redis.call('HSET', key, 'fingerprint', order.fingerprint, 'status', 'DENIED', 'answer', answer,
    'strategy', order.strategy, 'product', order.product, 'side', order.side, 'type', order.type, 'tif', order.tif,
    'quantity', order.quantity, 'limit_price', order.limit_price, 'created_us', text(order.us), 'by', order.by)
  redis.call('EXPIRE', key, KEPT_DENIED_S)
  audit(base, 'DENIED', order.id, order.by, { denials = denials, product = order.product, side = order.side,
    quantity = order.quantity, limit_price = order.limit_price, strategy = order.strategy })
  return { 'DENIED', answer }
end

-- Adds (sign 1) or takes back (sign -1) an order's open amounts in every scope it counts for.
local function count_open(base, order, sign, lots, notional, orders)
  local book = base .. ':book'
  local side = order.side == 'SELL' and '|sell_lots' or '|buy_lots'
  for _, scope in ipairs({ 'a', 'p|' .. order.product, 's|' .. order.strategy }) do
    add(book, scope .. '|open_orders', sign * orders)
    add(book, scope .. '|open_notional', sign * notional)
  end
  add(book, 'p|' .. order.product .. side, sign * lots)
  add(book, 'sp|' .. order.strategy .. '|' .. order.product .. side, sign * lots)
end

local function write_accepted(base, order)
  local answer = verdict_of(order, 'ACCEPTED')
  redis.call('HSET', base .. ':order:' .. order.id, 'fingerprint', order.fingerprint, 'status', 'RESERVED',
    'answer', answer, 'strategy', order.strategy, 'product', order.product, 'side', order.side, 'type', order.type,
    'tif', order.tif, 'quantity', order.quantity, 'limit_price', order.limit_price, 'post_only', order.post_only,
    'lots', text(order.lots), 'filled_lots', '0', 'filled_value', '0', 'fees', '0',
    'reserved_lots', text(order.lots), 'reserved_notional', text(order.notional), 'reserved_cash', text(order.reserved_cash),
    'notional', text(order.notional), 'cash', text(order.reserved_cash), 'created_us', text(order.us), 'changed_us', text(order.us),
    'by', order.by)
  count_open(base, order, 1, order.lots, order.notional, 1)
  add(base .. ':book', 'reserved', order.reserved_cash)
  redis.call('ZADD', base .. ':open', text(order.us), order.id)
  redis.call('XADD', base .. ':outbox', '*', 'kind', 'SUBMIT', 'id', order.id)
  audit(base, 'RESERVED', order.id, order.by, { strategy = order.strategy, product = order.product, side = order.side,
    lots = text(order.lots), notional = text(order.notional), cash = text(order.reserved_cash),
    quantity = order.quantity, limit_price = order.limit_price })
  return { 'ACCEPTED', answer }
end

-- KEYS[1] base.  ARGV: id, fingerprint, strategy, product, side, type, tif, quantity, limit_price, post_only, lots,
-- ticks ('' = market), num, den, by, denials found before (JSON list, '' = none).
-- Returns {ACCEPTED | DENIED | REPEATED | CONFLICT, the first answer as JSON}.
local function reserve(keys, args)
  local base = keys[1]
  local known = redis.call('HMGET', base .. ':order:' .. args[1], 'fingerprint', 'answer')
  if known[1] then
    return { known[1] == args[2] and 'REPEATED' or 'CONFLICT', known[2] }
  end
  local us = now_us()
  local now_ms = math.floor(us / 1000)
  local order = { id = args[1], fingerprint = args[2], strategy = args[3], product = args[4], side = args[5],
    type = args[6], tif = args[7], quantity = args[8], limit_price = args[9], post_only = args[10], by = args[15],
    us = us }
  local denials = args[16] ~= '' and cjson.decode(args[16]) or {}
  local deny = denier(denials)
  if #denials > 0 then
    return write_denied(base, order, denials)
  end
  order.lots = integer(args[11])
  order.ticks = args[12] ~= '' and integer(args[12]) or nil

  local limits, book = hash(base .. ':limits'), hash(base .. ':book')
  local account_position = tonumber(redis.call('HGET', base .. ':positions', order.product) or '0')
  local strategy_position = tonumber(redis.call('HGET', base .. ':positions:' .. order.strategy, order.product) or '0')
  local reducing = state_levels(base, order, deny)
  if reducing then
    check_reducing(order, reducing, account_position, strategy_position, book, deny)
  end
  local ticks = price_of(order, reference_of(base, order.product), now_ms, limits, deny)
  if ticks then
    order.notional = value_up(order.lots, ticks, integer(args[13]), integer(args[14]))
    if order.notional then
      check_sizes(order, limits, book, account_position, deny)
      check_gross(base, order, limits, book, now_ms, deny)
      check_funds(order, limits, book, account_position, deny)
    else
      deny('VALUE_TOO_LARGE', 'account', '', text(INTEGER_MAX), 'micros', 'the order is worth more than can be counted')
    end
  end
  if #denials > 0 then
    return write_denied(base, order, denials)
  end
  local rates = check_rates(base, order, limits, us, deny)
  if #denials > 0 then
    return write_denied(base, order, denials)
  end
  if #rates > 0 then
    redis.call('HSET', base .. ':rate', unpack(rates))
  end
  return write_accepted(base, order)
end

-- ---------------------------------------------------------------------------------------------------------------------
-- the life of an order after its reservation

local function set_status(base, id, status, ...)
  redis.call('HSET', base .. ':order:' .. id, 'status', status, 'changed_us', text(now_us()), ...)
end

-- Takes back what is still reserved and ends the order.
local function free(base, id, order, status)
  count_open(base, order, -1, tonumber(order.reserved_lots), tonumber(order.reserved_notional), 1)
  add(base .. ':book', 'reserved', -tonumber(order.reserved_cash))
  set_status(base, id, status, 'reserved_lots', '0', 'reserved_notional', '0', 'reserved_cash', '0')
  redis.call('ZREM', base .. ':open', id)
  redis.call('EXPIRE', base .. ':order:' .. id, KEPT_TERMINAL_S)
  redis.call('EXPIRE', base .. ':fills:' .. id, KEPT_TERMINAL_S)
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
  set_status(base, id, 'SENT')
  audit(base, 'SENT', id, 'execution', {})
  return { 'SENT', 'FIRST' }
end

-- ARGV: epoch, id, status (OPEN | UNKNOWN), venue_order_id. Moves a SENT or UNKNOWN order on.
local function ack(keys, args)
  local base, id, status = keys[1], args[2], args[3]
  if fenced(base, args[1]) then
    return { 'STALE_EPOCH' }
  end
  local key = base .. ':order:' .. id
  local before = redis.call('HGET', key, 'status')
  if args[4] ~= '' and before then
    redis.call('HSET', key, 'venue_order_id', args[4])
  end
  if not (before == 'SENT' or (before == 'UNKNOWN' and status == 'OPEN')) then
    return { before or 'NOT_FOUND' }
  end
  set_status(base, id, status)
  audit(base, status, id, 'execution', { venue_order_id = args[4] })
  return { status }
end

-- Moves cost and realised profit of one position; amounts in micros, exact: what a rounding leaves stays in the cost.
local function book_fill(base, product, side, lots, value)
  local book, positions = base .. ':book', base .. ':positions'
  local before = tonumber(redis.call('HGET', positions, product) or '0')
  local cost = tonumber(redis.call('HGET', book, 'p|' .. product .. '|cost') or '0')
  local signed = side == 'BUY' and lots or -lots
  local closing = 0
  if before * signed < 0 then
    closing = math.min(math.abs(before), lots)
  end
  local closed_value = closing == lots and value or mul_div(value, closing, lots)
  local closed_cost = closing == 0 and 0 or mul_div(math.abs(cost), closing, math.abs(before))
  local sign = before > 0 and 1 or -1
  if closing > 0 then
    add(book, 'p|' .. product .. '|realised', sign * (closed_value - closed_cost))
    add(book, 'p|' .. product .. '|cost', -sign * closed_cost)
  end
  add(book, 'p|' .. product .. '|cost', (side == 'BUY' and 1 or -1) * (value - closed_value))
  add(positions, product, signed)
end

-- ARGV: epoch, id, trade_id, lots, value_micros, fee_micros, ts_ns. Moves reserved to position and cash, once a trade id.
-- Returns {APPLIED | DUPLICATE | NOT_FOUND | STALE_EPOCH, status of the order}.
local function fill(keys, args)
  local base, id = keys[1], args[2]
  if fenced(base, args[1]) then
    return { 'STALE_EPOCH', '' }
  end
  local order = hash(base .. ':order:' .. id)
  if not order.lots then
    return { 'NOT_FOUND', '' }
  end
  local lots, value, fee = integer(args[4]), integer(args[5]), integer(args[6])
  if redis.call('SADD', base .. ':fills:' .. id, args[3]) == 0 then
    return { 'DUPLICATE', order.status }
  end
  local book = base .. ':book'
  local left = math.max(tonumber(order.reserved_lots) - lots, 0)
  local total = tonumber(order.lots)
  local notional = left == 0 and 0 or mul_div_up(tonumber(order.notional), left, total)
  local cash = left == 0 and 0 or mul_div_up(tonumber(order.cash), left, total)
  -- A buy's value leaves the cash, a sell's comes in; the fee always leaves.
  add(book, 'cash', (order.side == 'BUY' and -value or value) - fee)
  add(book, 'fees', fee)
  add(book, 'p|' .. order.product .. '|fees', fee)
  book_fill(base, order.product, order.side, lots, value)
  add(base .. ':positions:' .. order.strategy, order.product, order.side == 'BUY' and lots or -lots)
  count_open(base, order, -1, tonumber(order.reserved_lots) - left, tonumber(order.reserved_notional) - notional, 0)
  add(book, 'reserved', cash - tonumber(order.reserved_cash))
  local key = base .. ':order:' .. id
  local filled = tonumber(order.filled_lots) + lots
  redis.call('HSET', key, 'filled_lots', text(filled), 'reserved_lots', text(left), 'reserved_notional', text(notional),
    'reserved_cash', text(cash))
  redis.call('HINCRBY', key, 'filled_value', text(value))
  redis.call('HINCRBY', key, 'fees', text(fee))
  audit(base, 'FILL', id, 'execution', { trade_id = args[3], lots = text(lots), value = text(value), fee = text(fee),
    side = order.side, product = order.product, strategy = order.strategy, ts_ns = args[7], overfill = filled > total })
  local status = order.status
  if TERMINAL[status] then
    redis.call('EXPIRE', base .. ':fills:' .. id, KEPT_TERMINAL_S)
  else
    if filled >= total then
      status = 'FILLED'
      order.reserved_lots, order.reserved_notional, order.reserved_cash = text(left), text(notional), text(cash)
      free(base, id, order, status)
      audit(base, 'FILLED', id, 'execution', {})
    else
      status = 'PARTIALLY_FILLED'
      set_status(base, id, status)
    end
  end
  return { 'APPLIED', status }
end

-- ARGV: epoch, id, status (CANCELLED | REJECTED | EXPIRED), reason, by. Frees the reservation, exactly once.
local function release(keys, args)
  local base, id = keys[1], args[2]
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
  free(base, id, order, args[3])
  redis.call('HSET', base .. ':order:' .. id, 'reason', args[4])
  audit(base, args[3], id, args[5], { reason = args[4] })
  return { args[3], 'FIRST' }
end

-- ARGV: id, by. An order not yet sent is cancelled at once; otherwise the venue is asked through the outbox.
-- Returns {status now, CANCELLED | REQUESTED | ALREADY}.
local function request_cancel(keys, args)
  local base, id = keys[1], args[1]
  local order = hash(base .. ':order:' .. id)
  if not order.status then
    return { 'NOT_FOUND', '' }
  end
  if TERMINAL[order.status] then
    return { order.status, 'ALREADY' }
  end
  if order.status == 'RESERVED' then
    free(base, id, order, 'CANCELLED')
    redis.call('HSET', base .. ':order:' .. id, 'reason', 'cancelled before it was sent')
    audit(base, 'CANCELLED', id, args[2], { reason = 'cancelled before it was sent' })
    return { 'CANCELLED', 'CANCELLED' }
  end
  redis.call('XADD', base .. ':outbox', '*', 'kind', 'CANCEL', 'id', id)
  audit(base, 'CANCEL_REQUESTED', id, args[2], {})
  return { order.status, 'REQUESTED' }
end

-- ---------------------------------------------------------------------------------------------------------------------
-- the account

-- ARGV: scope, state, by, reason. CANCEL_ALL also asks for the cancellation of every open order the scope covers.
local function set_state(keys, args)
  local base, scope, state = keys[1], args[1], args[2]
  if not LEVELS[state] then
    return redis.error_reply('ERR not a trading state: ' .. state)
  end
  redis.call('HSET', base .. ':state', scope, state)
  local seq = audit(base, 'STATE', scope, args[3], { state = state, reason = args[4] })
  local asked = 0
  if state == 'CANCEL_ALL' then
    for _, id in ipairs(redis.call('ZRANGE', base .. ':open', 0, -1)) do
      local order = redis.call('HMGET', base .. ':order:' .. id, 'strategy', 'product')
      local covered = scope == 'global' or scope == 'account' or scope == 'strategy|' .. (order[1] or '')
        or scope == 'product|' .. (order[2] or '')
      if covered then
        request_cancel(keys, { id, args[3] })
        asked = asked + 1
      end
    end
  end
  return { seq, asked }
end

-- ARGV as set_state. Sets the state only where that does not allow more: of two halts at once the stricter one stays.
-- Returns {audit number, cancels asked for, the state that holds now}.
local function tighten(keys, args)
  local base, scope, state = keys[1], args[1], args[2]
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

-- ARGV: by, then field, value … replaces all limits at once and gives every scope named a state if it has none.
local function set_limits(keys, args)
  local base = keys[1]
  local version = tonumber(redis.call('HGET', base .. ':limits', 'version') or '0') + 1
  local before, changed, named = hash(base .. ':limits'), {}, {}
  for i = 2, #args, 2 do
    if before[args[i]] ~= args[i + 1] then
      changed[args[i]] = args[i + 1]
    end
    before[args[i]] = nil
    local scope = args[i]:match('^(%a+|[^|]+)|')
    if scope and args[i]:sub(1, 8) ~= 'account|' then
      named[scope] = true
    end
  end
  before['version'] = nil
  if next(changed) == nil and next(before) == nil then
    return version - 1
  end
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
  audit(base, 'LIMITS', tostring(version), args[1], { changed = changed })
  return version
end

-- ARGV: product, bid, ask, num, den (integers). The age counts from this server's clock.
local function set_reference(keys, args)
  local set_ms = text(math.floor(now_us() / 1000))
  for i = 1, #args, 5 do
    local bid, ask, num, den = integer(args[i + 1]), integer(args[i + 2]), integer(args[i + 3]), integer(args[i + 4])
    if bid <= 0 or ask < bid or num <= 0 or den <= 0 then
      return redis.error_reply('ERR reference of ' .. args[i] .. ': expected 0 < bid <= ask')
    end
    redis.call('HSET', keys[1] .. ':reference', args[i],
      text(bid) .. ' ' .. text(ask) .. ' ' .. set_ms .. ' ' .. text(num) .. ' ' .. text(den))
  end
  return set_ms
end

-- ARGV: by, cash_micros, then product, lots, cost_micros … Opens the books once; afterwards only fills change them.
local function open_account(keys, args)
  local base = keys[1]
  if redis.call('HEXISTS', base .. ':book', 'cash') == 1 then
    return 'ALREADY'
  end
  local opening = {}
  redis.call('HSET', base .. ':book', 'cash', text(integer(args[2])))
  for i = 3, #args, 3 do
    redis.call('HSET', base .. ':positions', args[i], text(integer(args[i + 1])))
    redis.call('HSET', base .. ':book', 'p|' .. args[i] .. '|cost', text(integer(args[i + 2])))
    opening[args[i]] = { lots = args[i + 1], cost = args[i + 2] }
  end
  audit(base, 'OPENED', 'account', args[1], { cash = args[2], positions = opening })
  return 'OPENED'
end

-- ARGV: by. A new epoch: whoever held the one before can no longer write. Returns it.
local function claim(keys, args)
  local epoch = redis.call('HINCRBY', keys[1] .. ':state', 'epoch', 1)
  audit(keys[1], 'EPOCH', tostring(epoch), args[1], {})
  return epoch
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

-- Sums every open order's reservation afresh, at one instant. Returns flat {field, sum, …} in the book's field names,
-- plus the count of ids in :open that hold no reservation.
local function open_sums(keys)
  local base = keys[1]
  local sums, broken = {}, 0
  local plus = function(field, n) sums[field] = (sums[field] or 0) + n end
  for _, id in ipairs(redis.call('ZRANGE', base .. ':open', 0, -1)) do
    local o = hash(base .. ':order:' .. id)
    if not o.lots or TERMINAL[o.status] then
      broken = broken + 1
    else
      local side = o.side == 'SELL' and '|sell_lots' or '|buy_lots'
      for _, scope in ipairs({ 'a', 'p|' .. o.product, 's|' .. o.strategy }) do
        plus(scope .. '|open_orders', 1)
        plus(scope .. '|open_notional', tonumber(o.reserved_notional))
      end
      plus('p|' .. o.product .. side, tonumber(o.reserved_lots))
      plus('sp|' .. o.strategy .. '|' .. o.product .. side, tonumber(o.reserved_lots))
      plus('reserved', tonumber(o.reserved_cash))
    end
  end
  local flat = { 'broken', text(broken) }
  for field, n in pairs(sums) do
    flat[#flat + 1] = field
    flat[#flat + 1] = text(n)
  end
  return { flat, redis.call('HGETALL', base .. ':book'), redis.call('HGETALL', base .. ':positions') }
end

local ALLOW_OOM = { 'allow-oom' }
redis.register_function('tt_reserve', reserve)
redis.register_function { function_name = 'tt_mark_sent', callback = mark_sent, flags = ALLOW_OOM }
redis.register_function { function_name = 'tt_ack', callback = ack, flags = ALLOW_OOM }
redis.register_function { function_name = 'tt_fill', callback = fill, flags = ALLOW_OOM }
redis.register_function { function_name = 'tt_release', callback = release, flags = ALLOW_OOM }
redis.register_function { function_name = 'tt_request_cancel', callback = request_cancel, flags = ALLOW_OOM }
redis.register_function { function_name = 'tt_set_state', callback = set_state, flags = ALLOW_OOM }
redis.register_function { function_name = 'tt_tighten', callback = tighten, flags = ALLOW_OOM }
redis.register_function { function_name = 'tt_set_reference', callback = set_reference, flags = ALLOW_OOM }
redis.register_function('tt_set_limits', set_limits)
redis.register_function('tt_open_account', open_account)
redis.register_function { function_name = 'tt_claim', callback = claim, flags = ALLOW_OOM }
redis.register_function { function_name = 'tt_snapshot', callback = snapshot, flags = { 'no-writes' } }
redis.register_function { function_name = 'tt_open_sums', callback = open_sums, flags = { 'no-writes' } }
