-- The shared state of pre-trade risk, part 2 of 6: reference prices, positions marked to them, automatic halts.

local reference_in = remembered(function(packed)
  local n = {}
  for word in packed:gmatch('%S+') do
    n[#n + 1] = integer(word)
  end
  return { bid = n[1], ask = n[2], set_ms = n[3], num = n[4], den = n[5], bid_lots = n[6] or 0, ask_lots = n[7] or 0,
    anchor_mid2 = n[8] or 0, anchor_ms = n[9] or 0, volatile_until_ms = n[10] or 0 }
end)

local function reference_of(base, product)
  local packed = redis.call('HGET', base .. ':reference', product)
  return packed and reference_in(packed) or nil
end

-- ---------------------------------------------------------------------------------------------------------------------
-- automatic halts

-- A scope's state, as it will be when this verb is done.
local function state_of(ctx, scope)
  for i = #ctx.states, 1, -1 do
    if ctx.states[i][1] == scope then
      return ctx.states[i][2]
    end
  end
  return redis.call('HGET', ctx.base .. ':state', scope) or nil
end

-- Makes a scope as strict as `state` until a person resumes; a scope that is as strict already stays as it is.
local function latch(ctx, scope, state, cause, value, limit, message)
  local before = state_of(ctx, scope)
  if before and LEVELS[before] and LEVELS[before] >= LEVELS[state] then
    return false
  end
  ctx.states[#ctx.states + 1] = { scope, state, cause }
  audit(ctx, 'STATE', scope, 'ledger', { state = state, before = before or '', cause = cause, reason = message,
    value = value, limit = limit })
  alert(ctx, 'HARD', cause, scope, value, limit, message)
  return true
end

-- Loss since the day began and fall from the peak of one scope; `before` is its PnL before this verb.
local function check_losses(ctx, scope, f, record, day, before, drawdown)
  if not record then
    return
  end
  local pnl = figure(ctx.book, f.pnl)
  local start = today(ctx.book, f, day)[3]
  local hard, soft = record.hard.max_daily_loss, record.soft.max_daily_loss
  local loss = start - pnl
  if hard and loss >= hard then
    latch(ctx, scope, 'REDUCING', 'DAILY_LOSS', text(loss), text(hard), 'the loss since the day began reached its limit')
  elseif soft and loss >= soft and start - before < soft then
    alert(ctx, 'SOFT', 'DAILY_LOSS', scope, text(loss), text(soft), 'the loss since the day began')
  end
  local most = drawdown and record.hard.max_drawdown_ppm
  if most and most < UNLIMITED and drawdown.ppm >= most then
    latch(ctx, scope, 'REDUCING', 'DRAWDOWN', text(drawdown.ppm), text(most), 'the fall from the peak reached its limit')
  elseif most and record.soft.max_drawdown_ppm < UNLIMITED and drawdown.ppm >= record.soft.max_drawdown_ppm
    and drawdown.ppm_before < record.soft.max_drawdown_ppm then
    alert(ctx, 'SOFT', 'DRAWDOWN', scope, text(drawdown.ppm), text(record.soft.max_drawdown_ppm), 'the fall from the peak')
  end
end

-- Fall from the peak in parts per million of it, rounded down: it trips when it has been reached, not before.
local function fall_ppm(peak, now)
  if peak <= 0 or now >= peak then
    return 0
  end
  local fallen = mul_div(peak - now, 1000000, peak)
  return fallen or INTEGER_MAX
end

-- The strategy's drawdown counts against its capital; without a capital none can be computed.
local function strategy_fall(record, peak, pnl)
  local capital = record and record.hard.capital
  if not capital or capital == UNLIMITED then
    return nil
  end
  return fall_ppm(capital + peak, capital + pnl)
end

-- ---------------------------------------------------------------------------------------------------------------------
-- marks

-- Value and gross exposure of `lots` (signed) with a cost, in micros; without a reference they stand at cost.
local function worth(lots, cost, ref)
  if lots == 0 then
    return 0, 0
  end
  if not ref then
    return cost, math.abs(cost)
  end
  local n = math.abs(lots)
  local value = lots > 0 and value_down(n, ref.bid + ref.ask, ref.num, ref.den * 2)
    or lots < 0 and value_up(n, ref.bid + ref.ask, ref.num, ref.den * 2)
  local gross = value_up(n, math.ceil((ref.bid + ref.ask) / 2), ref.num, ref.den)
  if not value or not gross then
    error('a position is worth more than the ledger can count')
  end
  return lots > 0 and value or -value, gross
end

-- Marks what stands under one prefix (p|P or sp|S|P); returns what value, gross and PnL have changed by.
local function mark_one(book, f, ref)
  local value, gross = worth(figure(book, f.lots), figure(book, f.cost), ref)
  local pnl = figure(book, f.realised) - figure(book, f.fees) + value - figure(book, f.cost)
  local moved = { value - figure(book, f.value), gross - figure(book, f.gross), pnl - figure(book, f.pnl) }
  add(book, f.value, moved[1])
  add(book, f.gross, moved[2])
  add(book, f.pnl, moved[3])
  return moved
end

local function add_moved(book, f, moved)
  add(book, f.value, moved[1])
  add(book, f.gross, moved[2])
  add(book, f.pnl, moved[3])
end

local function words_of(packed)
  local words = {}
  for word in (packed or ''):gmatch('%S+') do
    words[#words + 1] = word
  end
  return words
end

-- The limits that marking needs: of the desk, the account, the calendar, and of strategies and products by name.
local function mark_limits(base, products, strategies)
  local names = { 'account', 'calendar' }
  for _, product in ipairs(products) do
    names[#names + 1] = 'product|' .. product
  end
  for _, strategy in ipairs(strategies) do
    names[#names + 1] = 'strategy|' .. strategy
  end
  local raw, found = redis.call('HMGET', base .. ':limits', unpack(names)), {}
  for i, name in ipairs(names) do
    found[name] = raw[i]
  end
  local desk = redis.call('HMGET', DESK .. ':limits', 'global', 'calendar')
  return {
    calendar = found.calendar or nil,
    desk = limits_of(desk[1]),
    desk_calendar = desk[2] or nil,
    of = function(scope)
      return limits_of(found[scope])
    end,
  }
end

-- Starts a new day where one has begun, before this verb changes anything, and keeps the PnL as it was before it.
local function open_day(ctx, f, day, before)
  local record = today(ctx.book, f, day)
  put_today(ctx.book, f, day, record)
  before[f.pnl] = figure(ctx.book, f.pnl)
end

-- Begins a marking of `products` ({P -> reference or nil}); end_mark() closes it. `strategies` are those of a fill.
local function begin_mark(ctx, products, strategies)
  local touched, named, list = {}, {}, {}
  for product in pairs(products) do
    list[#list + 1] = product
    for _, strategy in ipairs(words_of(value_of(ctx.book, fields_of('p|' .. product .. '|').strategies))) do
      touched[strategy] = true
    end
  end
  for _, strategy in ipairs(strategies or {}) do
    touched[strategy] = true
  end
  for strategy in pairs(touched) do
    named[#named + 1] = strategy
  end
  table.sort(list)
  table.sort(named)
  local limits = mark_limits(ctx.base, list, named)
  local desk = desk_of(ctx)
  local mark = { products = products, list = list, strategies = named, limits = limits, before = {}, desk_before = {},
    day = day_number(ctx.us, limits.calendar), desk_day = day_number(ctx.us, limits.desk_calendar), fell = {} }
  -- The desk's day is its own: were it the account's, two accounts with different zones would begin it again and again.
  open_day(desk, fields_of(''), mark.desk_day, mark.desk_before)
  open_day(ctx, fields_of('a|'), mark.day, mark.before)
  mark.fell.desk = fall_ppm(figure(desk.book, 'peak'), figure(desk.book, 'equity'))
  mark.fell.account = fall_ppm(figure(ctx.book, 'a|peak'), figure(ctx.book, 'a|equity'))
  for _, product in ipairs(list) do
    open_day(ctx, fields_of('p|' .. product .. '|'), mark.day, mark.before)
  end
  for _, strategy in ipairs(named) do
    local f = fields_of('s|' .. strategy .. '|')
    open_day(ctx, f, mark.day, mark.before)
    mark.fell[strategy] = strategy_fall(limits.of('strategy|' .. strategy), figure(ctx.book, f.peak), figure(ctx.book, f.pnl))
  end
  return mark
end

local function group_of(record)
  local group = record and record.word.group
  return group and group ~= '-' and group or nil
end

-- Marks the products, brings equity and peaks up to date, and trips what has been reached.
local function end_mark(ctx, mark)
  local book, desk = ctx.book, desk_of(ctx)
  for _, product in ipairs(mark.list) do
    local ref = mark.products[product] or nil
    local moved = mark_one(book, fields_of('p|' .. product .. '|'), ref)
    add_moved(book, fields_of('a|'), moved)
    add_moved(desk.book, fields_of(''), moved)
    local group = group_of(mark.limits.of('product|' .. product))
    if group then
      add(book, fields_of('g|' .. group .. '|').gross, moved[2])
    end
    for _, strategy in ipairs(words_of(value_of(book, fields_of('p|' .. product .. '|').strategies))) do
      local of_strategy = mark_one(book, fields_of('sp|' .. strategy .. '|' .. product .. '|'), ref)
      add_moved(book, fields_of('s|' .. strategy .. '|'), of_strategy)
    end
  end
  local equity = figure(book, 'cash') + figure(book, 'a|value')
  add(desk.book, 'equity', equity - figure(book, 'a|equity'))
  add(book, 'a|equity', equity - figure(book, 'a|equity'))
  for _, pair in ipairs({ { book, fields_of('a|') }, { desk.book, fields_of('') } }) do
    if figure(pair[1], pair[2].equity) > figure(pair[1], pair[2].peak) then
      put_value(pair[1], pair[2].peak, figure(pair[1], pair[2].equity))
    end
  end
  check_losses(desk, 'global', fields_of(''), mark.limits.desk, mark.desk_day, mark.desk_before.pnl, {
    ppm = fall_ppm(figure(desk.book, 'peak'), figure(desk.book, 'equity')), ppm_before = mark.fell.desk })
  check_losses(ctx, 'account', fields_of('a|'), mark.limits.of('account'), mark.day, mark.before['a|pnl'], {
    ppm = fall_ppm(figure(book, 'a|peak'), equity), ppm_before = mark.fell.account })
  for _, product in ipairs(mark.list) do
    local f = fields_of('p|' .. product .. '|')
    check_losses(ctx, 'product|' .. product, f, mark.limits.of('product|' .. product), mark.day, mark.before[f.pnl])
  end
  for _, strategy in ipairs(mark.strategies) do
    local f = fields_of('s|' .. strategy .. '|')
    if figure(book, f.pnl) > figure(book, f.peak) then
      put_value(book, f.peak, figure(book, f.pnl))
    end
    local record = mark.limits.of('strategy|' .. strategy)
    local fall = strategy_fall(record, figure(book, f.peak), figure(book, f.pnl))
    check_losses(ctx, 'strategy|' .. strategy, f, record, mark.day, mark.before[f.pnl],
      fall and { ppm = fall, ppm_before = mark.fell[strategy] })
  end
end

-- ---------------------------------------------------------------------------------------------------------------------
-- references

-- The window in which a move counts as volatile starts anew when it is over.
local function volatility(ref, before, record, now_ms)
  local mid2 = ref.bid + ref.ask
  ref.anchor_mid2, ref.anchor_ms, ref.volatile_until_ms = mid2, now_ms, 0
  local most, window = record and record.hard.volatility_ppm, record and record.hard.volatility_window_ms
  if not before or before.anchor_mid2 == 0 or not most or most == UNLIMITED or not window then
    return false
  end
  ref.volatile_until_ms = before.volatile_until_ms
  if now_ms - before.anchor_ms <= window then
    ref.anchor_mid2, ref.anchor_ms = before.anchor_mid2, before.anchor_ms
  elseif now_ms - before.set_ms <= window then
    -- A new window begins with the last price of the old one, or a move between the two would be none.
    ref.anchor_mid2, ref.anchor_ms = before.bid + before.ask, before.set_ms
  end
  local moved = ppm_up(math.abs(mid2 - ref.anchor_mid2), ref.anchor_mid2)
  if moved > most then
    local tripped = ref.volatile_until_ms <= now_ms
    ref.volatile_until_ms = now_ms + (record.hard.volatility_halt_ms or 0)
    return tripped and moved
  end
  return false
end

local function pack_reference(ref)
  return string.format('%d %d %d %d %d %d %d %d %d %d', ref.bid, ref.ask, ref.set_ms, ref.num,
    ref.den, ref.bid_lots, ref.ask_lots, ref.anchor_mid2, ref.anchor_ms, ref.volatile_until_ms)
end

local MARK_NAMES = indexed({ 'seq', 'head', 'cash', 'a|value', 'a|gross', 'a|pnl', 'a|equity', 'a|peak', 'a|day' })

-- ARGV: product, bid, ask, num, den, bid_lots, ask_lots, age_ms … (integers; sizes 0 = not known). The age goes on
-- from there by this server's clock. A locked or crossed book is kept: it denies, and a crossed one halts the product.
local function set_reference(keys, args)
  local base, quoted, products, flat = keys[1], {}, {}, {}
  for i = 1, #args, 8 do
    local ref = { bid = positive(args[i + 1]), ask = positive(args[i + 2]), num = positive(args[i + 3]),
      den = positive(args[i + 4]), bid_lots = integer(args[i + 5]), ask_lots = integer(args[i + 6]),
      age_ms = integer(args[i + 7]) }
    products[args[i]] = ref
    quoted[#quoted + 1] = args[i]
  end
  if #quoted == 0 then
    return '0'
  end
  local ctx = begin(base, now_us(), MARK_NAMES)
  local now_ms = math.floor(ctx.us / 1000)
  local mark = begin_mark(ctx, products)
  sound(base)
  local before, changed, crossed = redis.call('HMGET', base .. ':reference', unpack(quoted)), {}, {}
  for i, product in ipairs(quoted) do
    local ref, old = products[product], before[i] and reference_in(before[i])
    ref.set_ms = now_ms - ref.age_ms
    local moved = volatility(ref, old, mark.limits.of('product|' .. product), now_ms)
    if moved then
      alert(ctx, 'HARD', 'VOLATILITY_HALT', 'product|' .. product, text(moved), '', 'the price moved too fast')
    end
    if not old or old.bid ~= ref.bid or old.ask ~= ref.ask or old.num ~= ref.num or old.den ~= ref.den then
      changed[product] = { text(ref.bid), text(ref.ask), text(ref.num), text(ref.den), text(ref.bid_lots), text(ref.ask_lots) }
    end
    if ref.bid > ref.ask then
      crossed[#crossed + 1] = product
    end
    flat[#flat + 1] = product
    flat[#flat + 1] = pack_reference(ref)
  end
  -- The prices come before what they trip.
  if next(changed) then
    audit(ctx, 'REFERENCE', 'account', 'execution', changed)
  end
  for _, product in ipairs(crossed) do
    latch(ctx, 'product|' .. product, 'HALTED', 'BAD_BOOK', text(products[product].bid), text(products[product].ask),
      'the market is crossed')
  end
  end_mark(ctx, mark)
  finish(ctx)
  redis.call('HSET', base .. ':reference', unpack(flat))
  return text(now_ms)
end

-- ARGV: epoch. Called about once a second by execution: prices that stay old halt their product. Returns the causes.
local function watch(keys, args)
  local base = keys[1]
  if fenced(base, args[1]) then
    return { 'STALE_EPOCH' }
  elseif not is_admitted(base, args[1]) then
    return { 'OK', 'NOT_ADMITTED' }
  end
  local ctx = begin(base, now_us())
  sound(base)
  local record = limits_of(redis.call('HGET', base .. ':limits', 'account'))
  local most, now_ms, causes = record and record.hard.reference_halt_ms, math.floor(ctx.us / 1000), { 'OK' }
  if most and most < UNLIMITED then
    local references = hash(base .. ':reference')
    for _, scope in ipairs(redis.call('HKEYS', base .. ':limits')) do
      local product = scope:match('^product|(.+)$')
      local ref = product and references[product] and reference_in(references[product])
      local age_ms = ref and math.abs(now_ms - ref.set_ms) or 0
      if age_ms > most and latch(ctx, scope, 'HALTED', 'STALE_REFERENCE', text(age_ms), text(most),
        'the reference price has stayed too old') then
        causes[#causes + 1] = 'STALE_REFERENCE'
      end
    end
  end
  finish(ctx)
  return causes
end

-- ARGV: epoch, errors since the last call. More than max_venue_errors in their window: the venue is not healthy.
local function venue_errors(keys, args)
  local base = keys[1]
  if fenced(base, args[1]) then
    return { 'STALE_EPOCH' }
  end
  local ctx = begin(base, now_us())
  sound(base)
  local record = limits_of(redis.call('HGET', base .. ':limits', 'account')) or NOTHING
  local start, count = counted(ctx.book, 'a|venue_errors', math.floor(ctx.us / 1000),
    record.hard.venue_error_window_ms or 0, integer(args[2]))
  put_counted(ctx.book, 'a|venue_errors', start, count)
  if count > (record.hard.max_venue_errors or 0) then
    latch(ctx, 'account', 'REDUCING', 'VENUE_UNHEALTHY', text(count), text(record.hard.max_venue_errors or 0),
      'the venue fails too often')
  end
  finish(ctx)
  return { 'OK' }
end
