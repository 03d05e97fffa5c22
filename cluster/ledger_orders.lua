-- The shared state of pre-trade risk, part 4 of 6: the life of an order after its reservation.

local function set_order(base, us, id, status, ...)
  redis.call('HSET', base .. ':order:' .. id, 'status', status, 'changed_us', text(us), ...)
end

local function group_now(base, product)
  return group_of(limits_of(redis.call('HGET', base .. ':limits', 'product|' .. product)))
end

-- What a terminal order leaves: no reservation, and a record that is kept for a while.
local function close(base, id, order)
  redis.call('ZREM', base .. ':open', id)
  redis.call('ZREM', resting_key(base, order.product, order.side), id)
  redis.call('EXPIRE', base .. ':order:' .. id, KEPT_TERMINAL_S)
  redis.call('EXPIRE', base .. ':fills:' .. id, KEPT_TERMINAL_S)
end

-- How many losing exits in a row; enough of them lock the strategy. An order counts once, when it has ended.
local function count_streak(ctx, order, realised)
  if realised == 0 then
    return
  end
  local label, f = 'strategy|' .. order.strategy, fields_of('s|' .. order.strategy .. '|')
  if realised > 0 then
    if figure(ctx.book, f.streak) ~= 0 then
      put_value(ctx.book, f.streak, 0)
    end
    return
  end
  add(ctx.book, f.streak, 1)
  local record = limits_of(redis.call('HGET', ctx.base .. ':limits', label))
  local most = record and record.hard.max_loss_streak
  if most and figure(ctx.book, f.streak) >= most then
    latch(ctx, label, 'REDUCING', 'COOLDOWN', text(figure(ctx.book, f.streak)), text(most), 'losing exits in a row')
  end
end

-- Venue rejections in their window, of the strategy and of the account.
local function count_rejection(ctx, order)
  local now_ms = math.floor(ctx.us / 1000)
  local strategy = order.strategy
  for _, pair in ipairs({ { 'account', 'a|rejects' }, { 'strategy|' .. strategy, 's|' .. strategy .. '|rejects' } }) do
    local label, name = pair[1], pair[2]
    local record = limits_of(redis.call('HGET', ctx.base .. ':limits', label)) or NOTHING
    local start, count = counted(ctx.book, name, now_ms, record.hard.reject_window_ms or 0, 1)
    put_counted(ctx.book, name, start, count)
    if count > (record.hard.max_rejects or UNLIMITED) then
      latch(ctx, label, 'REDUCING', 'REJECT_STORM', text(count), text(record.hard.max_rejects), 'the venue rejects too much')
    end
  end
end

-- Takes back what is still reserved and ends the order. The caller has checked that it is open.
local function free(ctx, id, order, status, reason, by)
  local base = ctx.base
  add(ctx.book, 'reserved', -integer(order.reserved_cash))
  count_open(ctx, order, group_now(base, order.product), -1, integer(order.reserved_lots),
    integer(order.reserved_notional), 1)
  audit(ctx, status, id, by, { reason = reason })
  count_streak(ctx, order, integer(order.realised or '0'))
  if status == 'REJECTED' then
    count_rejection(ctx, order)
  end
  redis.call('ZCARD', resting_key(base, order.product, order.side))
  finish(ctx)
  if order.amend then
    redis.call('HDEL', base .. ':order:' .. id, 'amend')
  end
  set_order(base, ctx.us, id, status, 'reserved_lots', '0', 'reserved_notional', '0', 'reserved_cash', '0', 'realised', '0',
    'reason', reason)
  close(base, id, order)
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
  local ctx = begin(base, now_us())
  audit(ctx, 'SENT', id, 'execution', '{}')
  finish(ctx)
  set_order(base, ctx.us, id, 'SENT')
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
  local moves = before == 'SENT' or (before == 'UNKNOWN' and status == 'OPEN')
  if moves then
    local ctx = begin(base, now_us())
    audit(ctx, status, id, 'execution', { venue_order_id = args[4] })
    finish(ctx)
    set_order(base, ctx.us, id, status)
  end
  if args[4] ~= '' and before then
    redis.call('HSET', key, 'venue_order_id', args[4])
  end
  return { moves and status or before or 'NOT_FOUND' }
end

-- What a fill does to lots, cost and realised profit under one prefix, in micros: what a rounding leaves stays in the
-- cost. Returns the profit realised.
local function move_position(book, f, side, lots, value, fee)
  local before, cost = figure(book, f.lots), figure(book, f.cost)
  local closing = 0
  if (side == 'SELL' and before > 0) or (side == 'BUY' and before < 0) then
    closing = math.min(math.abs(before), lots)
  end
  local closed_value = closing == lots and value or mul_div(value, closing, lots)
  local closed_cost = closing == 0 and 0
    or closing == math.abs(before) and math.abs(cost)
    or mul_div(math.abs(cost), closing, math.abs(before))
  local sign, realised = before > 0 and 1 or -1, 0
  if closing > 0 then
    realised = sign * (closed_value - closed_cost)
    add(book, f.realised, realised)
    add(book, f.cost, -sign * closed_cost)
  end
  add(book, f.cost, (side == 'BUY' and 1 or -1) * (value - closed_value))
  add(book, f.fees, fee)
  add(book, f.lots, side == 'BUY' and lots or -lots)
  return realised, closing
end

-- The product among those held or not, the strategy among those that ever held it.
local function note_holders(book, product, strategy)
  local f = fields_of('p|' .. product .. '|')
  local names, held, known = words_of(value_of(book, 'held')), {}, false
  for _, name in ipairs(names) do
    if name ~= product then
      held[#held + 1] = name
    end
  end
  if figure(book, f.lots) ~= 0 then
    held[#held + 1] = product
  end
  table.sort(held)
  if table.concat(held, ' ') ~= (value_of(book, 'held') or '') then
    put_value(book, 'held', table.concat(held, ' '))
  end
  local strategies = words_of(value_of(book, f.strategies))
  for _, name in ipairs(strategies) do
    known = known or name == strategy
  end
  if strategy and not known then
    strategies[#strategies + 1] = strategy
    table.sort(strategies)
    put_value(book, f.strategies, table.concat(strategies, ' '))
  end
end

-- The books, field names and day of every scope whose day an order counts for.
local function day_scopes(ctx, order, day, desk_day)
  local scopes = { { desk_of(ctx).book, fields_of(''), desk_day }, { ctx.book, fields_of('a|'), day } }
  for _, prefix in ipairs({ 's|' .. order.strategy .. '|', 'p|' .. order.product .. '|', 'k|' .. order.by .. '|' }) do
    scopes[#scopes + 1] = { ctx.book, fields_of(prefix), day }
  end
  return scopes
end

local function count_fill(ctx, order, value, mark)
  for _, scope in ipairs(day_scopes(ctx, order, mark.day, mark.desk_day)) do
    local record = today(unpack(scope))
    if record[2] + value > INTEGER_MAX then
      error("today's turnover would be more than the ledger can count")
    end
    record[2], record[5] = record[2] + value, record[5] + 1
    put_today(scope[1], scope[2], scope[3], record)
  end
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
  if order.amend then
    -- Until the venue has said which it is, it may be the larger of the two.
    total = math.max(total, integer(cjson.decode(order.amend).lots))
  end
  local basis = integer(order.basis_lots or order.lots)
  local left = math.max(integer(order.reserved_lots) - lots, 0)
  local notional = left == 0 and 0 or mul_div_up(integer(order.notional), left, basis)
  local cash = left == 0 and 0 or mul_div_up(integer(order.cash), left, basis)
  local was_open = not TERMINAL[order.status]
  local ended = was_open and filled >= total
  local ctx = begin(base, now_us(), MARK_NAMES)
  local book = ctx.book

  local mark = begin_mark(ctx, { [order.product] = reference_of(base, order.product) or false }, { order.strategy })
  -- A buy's value leaves the cash, a sell's comes in; the fee always leaves.
  add(book, 'cash', (order.side == 'BUY' and -value or value) - fee)
  add(book, 'fees', fee)
  add(book, 'reserved', cash - integer(order.reserved_cash))
  count_open(ctx, order, group_of(mark.limits.of('product|' .. order.product)), -1, integer(order.reserved_lots) - left,
    integer(order.reserved_notional) - notional, ended and 1 or 0)
  local realised, closing = move_position(book, fields_of('sp|' .. order.strategy .. '|' .. order.product .. '|'),
    order.side, lots, value, fee)
  move_position(book, fields_of('p|' .. order.product .. '|'), order.side, lots, value, fee)
  note_holders(book, order.product, order.strategy)
  count_fill(ctx, order, value, mark)
  audit(ctx, 'FILL', id, 'execution', { trade_id = trade, lots = text(lots), value = text(value), fee = text(fee),
    side = order.side, product = order.product, strategy = order.strategy, ts_ns = args[7], overfill = filled > total })
  if ended then
    audit(ctx, 'FILLED', id, 'execution', '{}')
  end
  local kept = integer(order.realised or '0') + (closing > 0 and realised - fee or 0)
  end_mark(ctx, mark)
  if ended or (not was_open and closing > 0) then
    count_streak(ctx, order, kept)
    kept = 0
  end
  if filled > total then
    local scope, message = 'strategy|' .. order.strategy, 'the venue filled more of order ' .. id .. ' than was ordered'
    if not latch(ctx, scope, 'HALTED', 'OVERFILL', text(filled), text(total), message) then
      -- Said all the same where the strategy is halted already: whoever resumes it must know.
      alert(ctx, 'HARD', 'OVERFILL', scope, text(filled), text(total), message, id)
    end
  end

  local status = not was_open and order.status or ended and 'FILLED' or 'PARTIALLY_FILLED'
  local stamp = was_open and text(ctx.us) or order.changed_us
  local filled_value, fees = text(integer(order.filled_value) + value), text(integer(order.fees) + fee)
  redis.call('ZCARD', resting_key(base, order.product, order.side))
  finish(ctx)
  redis.call('SADD', base .. ':fills:' .. id, trade)
  redis.call('HSET', base .. ':order:' .. id, 'status', status, 'changed_us', stamp, 'reserved_lots', text(left),
    'reserved_notional', text(notional), 'reserved_cash', text(cash), 'filled_lots', text(filled),
    'filled_value', filled_value, 'fees', fees, 'realised', text(kept))
  if TERMINAL[status] then
    close(base, id, order)
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
  free(begin(base, now_us()), id, order, args[3], args[4], args[5])
  return { args[3], 'FIRST' }
end

-- A cancel is a message to the venue: it counts, and it is never refused.
local function count_cancel(ctx, order)
  local calendar = redis.call('HGET', ctx.base .. ':limits', 'calendar') or nil
  local desk_calendar = redis.call('HGET', DESK .. ':limits', 'calendar') or nil
  for _, scope in ipairs(day_scopes(ctx, order, day_number(ctx.us, calendar), day_number(ctx.us, desk_calendar))) do
    local record = today(unpack(scope))
    record[4] = record[4] + 1
    put_today(scope[1], scope[2], scope[3], record)
  end
  local account = limits_of(redis.call('HGET', ctx.base .. ':limits', 'account')) or NOTHING
  local interval, burst = account.hard.message_interval_us, account.hard.message_burst
  if interval and interval < UNLIMITED and burst then
    local arrival = math.min(math.max(figure(ctx.book, 'a|msg_tat'), ctx.us), ctx.us + burst * interval)
    put_value(ctx.book, 'a|msg_tat', arrival + interval)
  end
end

-- One order's cancellation; writes at once, so that of many each stands by itself.
local function cancel_one(base, us, id, by)
  local order = hash(base .. ':order:' .. id)
  if not order.status then
    return { 'NOT_FOUND', '' }
  end
  if TERMINAL[order.status] then
    return { order.status, 'ALREADY' }
  end
  sound(base)
  local ctx = begin(base, us)
  if order.status == 'RESERVED' then
    free(ctx, id, order, 'CANCELLED', 'cancelled before it was sent', by)
    return { 'CANCELLED', 'CANCELLED' }
  end
  local asked = order.cancel_entry
  if not asked or #redis.call('XRANGE', base .. ':outbox', asked, asked) == 0 then
    count_cancel(ctx, order)
    audit(ctx, 'CANCEL_REQUESTED', id, by, '{}')
    finish(ctx)
    local entry = redis.call('XADD', base .. ':outbox', '*', 'kind', 'CANCEL', 'id', id)
    redis.call('HSET', base .. ':order:' .. id, 'cancel_entry', entry)
  end
  return { order.status, 'REQUESTED' }
end

-- ARGV: id, by. An order not yet sent is cancelled at once; otherwise the venue is asked through the outbox, once as
-- long as the question is on its way. Returns {status now, CANCELLED | REQUESTED | ALREADY}.
local function request_cancel(keys, args)
  return cancel_one(keys[1], now_us(), args[1], args[2])
end
