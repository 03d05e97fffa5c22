-- The shared state of pre-trade risk, part 5 of 6: what only the venue can tell (amendments, orders found there, books
-- that differ), the budget of requests to it, and whether real money may be used.

-- How much an order that goes on holds, of what `basis` lots were valued at; then the order as it is now.
local function settle_amend(ctx, id, order, kind, data, new)
  local base, filled = ctx.base, integer(order.filled_lots)
  local left = math.max(new.lots - filled, 0)
  local notional = left == 0 and 0 or mul_div_up(new.notional, left, new.basis)
  local cash = left == 0 and 0 or mul_div_up(new.cash, left, new.basis)
  local ended = left == 0
  add(ctx.book, 'reserved', cash - integer(order.reserved_cash))
  count_open(ctx, order, group_now(base, order.product), -1, integer(order.reserved_lots) - left,
    integer(order.reserved_notional) - notional, ended and 1 or 0)
  audit(ctx, kind, id, 'execution', data)
  if ended then
    audit(ctx, 'FILLED', id, 'execution', '{}')
    count_streak(ctx, order, integer(order.realised or '0'))
  end
  redis.call('ZCARD', resting_key(base, order.product, order.side))
  finish(ctx)
  redis.call('HDEL', base .. ':order:' .. id, 'amend')
  redis.call('HSET', base .. ':order:' .. id, 'status', ended and 'FILLED' or order.status, 'changed_us', text(ctx.us),
    'lots', text(new.lots), 'basis_lots', text(new.basis), 'notional', text(new.notional), 'cash', text(new.cash),
    'reserved_lots', text(left), 'reserved_notional', text(notional), 'reserved_cash', text(cash))
  if ended then
    -- Counted now: of a fill that comes later only that one.
    redis.call('HSET', base .. ':order:' .. id, 'realised', '0')
    close(base, id, order)
  end
  return ended and 'FILLED' or order.status
end

-- The order whose amendment the caller settles: {reply} where there is nothing to settle, else nil, order, pending.
local function amending(base, args)
  if fenced(base, args[1]) then
    return { 'STALE_EPOCH' }
  end
  local order = hash(base .. ':order:' .. args[2])
  if not order.lots then
    return { 'NOT_FOUND' }
  end
  if TERMINAL[order.status] or not order.amend then
    return { order.status }
  end
  sound(base)
  return nil, order, cjson.decode(order.amend)
end

-- ARGV: epoch, id. The venue has amended the order. Returns {status now, FIRST?}.
local function amended(keys, args)
  local base, id = keys[1], args[2]
  local reply, order, to = amending(base, args)
  if reply then
    return reply
  end
  local new = { lots = integer(to.lots), basis = integer(to.left), notional = integer(to.notional), cash = integer(to.cash) }
  local status = settle_amend(begin(base, now_us()), id, order, 'AMENDED', '{}', new)
  redis.call('HSET', base .. ':order:' .. id, 'quantity', to.quantity, 'limit_price', to.limit_price)
  if not TERMINAL[status] then
    redis.call('ZADD', resting_key(base, order.product, order.side), to.ticks, id)
  end
  return { status, 'FIRST' }
end

-- ARGV: epoch, id, reason. The venue has not: the order is as it was. Returns {status now, FIRST?}.
local function amend_refused(keys, args)
  local base, id = keys[1], args[2]
  local reply, order, to = amending(base, args)
  if reply then
    return reply
  end
  local new = { lots = integer(order.lots), basis = integer(to.old_basis), notional = integer(to.old_notional),
    cash = integer(to.old_cash) }
  local ctx = begin(base, now_us())
  alert(ctx, 'SOFT', 'AMEND_REFUSED', 'strategy|' .. order.strategy, '', '', args[3], id)
  local status = settle_amend(ctx, id, order, 'AMEND_REFUSED', { reason = args[3] }, new)
  if not TERMINAL[status] and to.old_ticks then
    redis.call('ZADD', resting_key(base, order.product, order.side), to.old_ticks, id)
  end
  return { status, 'FIRST' }
end

-- ARGV: epoch, order packed as for reserve, venue_order_id. An order the venue has and the ledger does not know becomes
-- one of its own: no limit can refuse what is there already, so it is counted, and said aloud. Returns {ADOPTED | KNOWN}.
local function adopt(keys, args)
  local base = keys[1]
  if fenced(base, args[1]) then
    return { 'STALE_EPOCH' }
  end
  local o = read_order(args[2], now_us())
  if redis.call('HEXISTS', base .. ':order:' .. o.id, 'lots') == 1 then
    return { 'KNOWN' }
  end
  sound(base)
  local lots, ticks = positive(o.lots), o.ticks ~= '' and positive(o.ticks) or nil
  local ref = reference_of(base, o.product)
  local stop = o.stop_ticks and positive(o.stop_ticks)
  local price = ticks or stop or (ref and ref.ask) or 0
  if o.type == 'BRACKET' and o.side == 'BUY' and stop then
    price = bracket_ticks(stop) or price
  end
  local notional = price > 0 and value_up(lots, price, positive(o.num), positive(o.den)) or 0
  local account = limits_of(redis.call('HGET', base .. ':limits', 'account'))
  local fee_ppm = account and account.hard.taker_fee_ppm or 0
  fee_ppm = fee_ppm < UNLIMITED and fee_ppm or 0
  local cash = o.side == 'BUY' and notional + (mul_div_up(notional, fee_ppm, 1000000) or 0) or 0
  local ctx = begin(base, o.us)
  add(ctx.book, 'reserved', cash)
  count_open(ctx, o, group_now(base, o.product), 1, lots, notional, 1)
  audit(ctx, 'ADOPTED', o.id, o.by, '{"request":' .. o.packed .. ',"notional":"' .. text(notional) .. '","cash":"'
    .. text(cash) .. '","venue_order_id":' .. cjson.encode(args[3]) .. '}')
  alert(ctx, 'HARD', 'ADOPTED', 'account', args[3], '', 'the venue has an order the ledger did not know', o.id)
  finish(ctx)
  local now = text(o.us)
  redis.call('DEL', base .. ':order:' .. o.id)
  redis.call('HSET', base .. ':order:' .. o.id, 'fingerprint', o.fingerprint, 'status', 'OPEN', 'strategy', o.strategy,
    'product', o.product, 'side', o.side, 'type', o.type, 'tif', o.tif, 'quantity', o.quantity, 'limit_price',
    o.limit_price, 'post_only', o.post_only, 'lots', o.lots, 'filled_lots', '0', 'filled_value', '0', 'fees', '0',
    'reserved_lots', o.lots, 'reserved_notional', text(notional), 'reserved_cash', text(cash), 'notional', text(notional),
    'cash', text(cash), 'created_us', now, 'changed_us', now, 'by', o.by, 'reduce_only', o.reduce_only, 'version', o.version, 'warnings', '',
    'venue_order_id', args[3])
  if o.stop_ticks or o.end_ns ~= '' then
    redis.call('HSET', base .. ':order:' .. o.id, 'stop_price', o.stop_price, 'end_ns', o.end_ns)
  end
  redis.call('ZADD', base .. ':open', now, o.id)
  if ticks and not o.stop_ticks and (o.tif == 'GTC' or o.tif == 'GTD') then
    redis.call('ZADD', resting_key(base, o.product, o.side), o.ticks, o.id)
  end
  return { 'ADOPTED' }
end

-- ARGV: epoch, number of differences, what they are (JSON). The books and the venue do not agree, and nothing explains
-- it: the account is halted until somebody has found out. Returns {HALTED | ALREADY}.
local function recon_break(keys, args)
  local base = keys[1]
  if fenced(base, args[1]) then
    return { 'STALE_EPOCH' }
  end
  local ctx = begin(base, now_us())
  local first = latch(ctx, 'account', 'HALTED', 'RECON_BREAK', args[2], '0', 'the books and the venue differ: ' .. args[3])
  finish(ctx)
  return { first and 'HALTED' or 'ALREADY' }
end

-- ARGV: epoch, scope, by, figures (JSON). Notes that the venue's own list of open orders of a scope was empty after it
-- was told to be.
local function emptied(keys, args)
  if fenced(keys[1], args[1]) then
    return { 'STALE_EPOCH' }
  end
  local ctx = begin(keys[1], now_us())
  audit(ctx, 'EMPTIED', args[2], args[3], args[4])
  finish(ctx)
  return { 'OK' }
end

-- Books cash and positions that came or went without an order (two people have said so): {cash, positions {P -> {lots,
-- cost}}}, cost in micros being what they are entered at. Nothing is written but into the context.
local function adjust(ctx, payload, by, reason)
  local products = {}
  for product in pairs(payload.positions) do
    products[product] = reference_of(ctx.base, product) or false
  end
  local mark = begin_mark(ctx, products)
  add(ctx.book, 'cash', integer(payload.cash))
  for product, change in pairs(payload.positions) do
    local f = fields_of('p|' .. product .. '|')
    local before, lots = figure(ctx.book, f.lots), integer(change.lots)
    -- What leaves takes its part of the cost with it, so that moving coins is neither a profit nor a loss.
    local cost = integer(change.cost)
    if before ~= 0 and before * lots < 0 then
      local whole = figure(ctx.book, f.cost)
      -- Rounded as a fill rounds it, in the same direction for what is owed as for what is held.
      local part = mul_div(math.abs(whole), math.min(math.abs(lots), math.abs(before)), math.abs(before))
      cost = whole > 0 and -part or part
    end
    add(ctx.book, f.lots, lots)
    add(ctx.book, f.cost, cost)
    note_holders(ctx.book, product, nil)
  end
  audit(ctx, 'ADJUSTED', 'account', by, { cash = payload.cash, positions = payload.positions, reason = reason })
  end_mark(ctx, mark)
end

-- ---------------------------------------------------------------------------------------------------------------------
-- the budget of requests: GCRA over all processes

-- KEYS[1] the desk's base. ARGV: name, interval_us, burst, kept (of the burst, for others), wait_us_max. Takes one
-- request's place if it comes up within wait_us_max. Returns {1 | 0 taken, us until it is due, or until one is free}.
local function venue_budget(keys, args)
  local key, interval = DESK .. ':venue_budget', integer(args[2])
  local us, burst, kept = now_us(), integer(args[3]), integer(args[4])
  local arrival = tonumber(redis.call('HGET', key, args[1]) or '0')
  -- A clock that was set back must not lock for long.
  arrival = math.min(math.max(arrival, us), us + 60000000)
  local wait = math.max(0, arrival - us - (burst - kept - 1) * interval)
  if wait > integer(args[5]) then
    return { 0, text(wait) }
  end
  redis.call('HSET', key, args[1], text(arrival + interval))
  return { 1, text(wait) }
end

-- ---------------------------------------------------------------------------------------------------------------------
-- real money or not

-- Of the desk. ARGV: environment, by. The first to come decides what these books are of; another is refused for good.
-- Returns {OK | BOUND, the environment that holds}.
local function bind_environment(keys, args)
  local bound = redis.call('HGET', DESK .. ':environment', 'name')
  if bound then
    return { bound == args[1] and 'OK' or 'BOUND', bound }
  end
  local ctx = begin(DESK, now_us())
  audit(ctx, 'ENVIRONMENT', args[1], args[2], '{}')
  redis.call('HLEN', DESK .. ':environment')
  finish(ctx)
  redis.call('HSET', DESK .. ':environment', 'name', args[1])
  return { 'OK', args[1] }
end

-- Of the desk. ARGV: until_ms ('0': not any more), by, person, reason. Returns the time it holds until.
local function arm(keys, args)
  local ctx = begin(DESK, now_us())
  local until_ms = integer(args[1])
  if until_ms ~= 0 and until_ms <= math.floor(ctx.us / 1000) then
    return redis.error_reply('ERR armed until a time in the future, was ' .. args[1])
  end
  local data = { until_ms = args[1], person = args[3], reason = args[4] }
  audit(ctx, until_ms == 0 and 'DISARMED' or 'ARMED', 'global', args[2], data)
  redis.call('HLEN', DESK .. ':environment')
  finish(ctx)
  redis.call('HSET', DESK .. ':environment', 'armed', cjson.encode({ until_ms = args[1], by = args[2], person = args[3], reason = args[4] }),
    'armed_until_ms', args[1])
  return args[1]
end
