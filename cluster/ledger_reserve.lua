-- The shared state of pre-trade risk, part 3 of 6: the decision on an order, and its reservation.
--
-- Every rule is looked at, so that a denial names all that are broken; rates come last, so that a denied order uses none
-- up. What a rule needs and does not find denies.

-- A Lua function has at most 200 local variables, the library's own body too: of this part only these are seen later.
local count_open, reserve, check, override_payload, read_order, amend, bracket_ticks

do
local RECENT_KEPT = 15
local RECENT_NEEDED = 5
local LIMIT_SCOPE_FIELDS = { 'open_orders', 'buy_notional', 'sell_notional', 'day', 'tat' }
local MARKED_FIELDS = { 'gross', 'value' }

-- Names of the book's fields that an order of this strategy, product and key looks at.
local names_for = remembered(function(joined)
  local strategy, product, key, group = joined:match('^([^ ]*) ([^ ]*) ([^ ]*) ([^ ]*)$')
  local names = { 'seq', 'head', 'cash', 'reserved', 'held', 'a|equity', 'a|msg_tat' }
  for _, prefix in ipairs({ 'a|', 's|' .. strategy .. '|', 'p|' .. product .. '|', 'k|' .. key .. '|' }) do
    for _, name in ipairs(LIMIT_SCOPE_FIELDS) do
      names[#names + 1] = prefix .. name
    end
    for _, name in ipairs(prefix:sub(1, 1) ~= 'k' and MARKED_FIELDS or {}) do
      names[#names + 1] = prefix .. name
    end
  end
  for _, name in ipairs({ 'lots', 'buy_lots', 'sell_lots', 'recent' }) do
    names[#names + 1] = 'p|' .. product .. '|' .. name
  end
  for _, name in ipairs({ 'lots', 'buy_lots', 'sell_lots' }) do
    names[#names + 1] = 'sp|' .. strategy .. '|' .. product .. '|' .. name
  end
  names[#names + 1] = 's|' .. strategy .. '|repeats'
  for _, name in ipairs(group ~= '' and { 'buy_notional', 'sell_notional', 'gross' } or {}) do
    names[#names + 1] = 'g|' .. group .. '|' .. name
  end
  return indexed(names)
end)

local DESK_NAMES = indexed({ 'open_orders', 'buy_notional', 'sell_notional', 'gross', 'value', 'day', 'tat' })

-- ---------------------------------------------------------------------------------------------------------------------
-- what is found

local function deny(o, code, scope, value, limit, unit, message)
  o.denials[#o.denials + 1] = { code = code, scope = scope, value = value, limit = limit, unit = unit, message = message }
end

local function missing_limit(o, scope, name)
  deny(o, 'MISSING_LIMIT', scope, '', '', '', 'no limit ' .. name .. ' is set for ' .. scope)
end

-- Compares with one limit. `value` nil or false: it cannot be computed, or does not matter; a limit that is missing has
-- had its denial in check_limits().
local function compare(o, record, scope, name, value, unit, code, message)
  local soft = record.soft[name]
  if value and value > soft then
    local hard = record.hard[name]
    if value > hard then
      deny(o, code, scope, text(value), text(hard), unit, message)
    else
      o.warnings[#o.warnings + 1] = { code = code, scope = scope, value = text(value), limit = text(soft), unit = unit,
        message = message }
    end
  end
end

-- A number that is there, and not unlimited; nil otherwise.
local function number_of(record, name)
  local hard = record and record.hard[name]
  return hard ~= UNLIMITED and hard or nil
end

-- ---------------------------------------------------------------------------------------------------------------------
-- reading the order and what it meets

function read_order(packed, us)
  local a = cjson.decode(packed)
  local more = a[21] or NOTHING
  return { stop_price = more.stop_price or '', stop_ticks = more.stop_ticks, end_ns = more.end_ns or '', packed = packed, id = a[1], fingerprint = a[2], strategy = a[3], product = a[4], side = a[5], type = a[6],
    tif = a[7], quantity = a[8], limit_price = a[9], post_only = a[10], lots = a[11], ticks = a[12], num = a[13],
    den = a[14], by = a[15], denials = a[16], epoch = a[17], sent_ms = a[18], reduce_only = a[19], version = a[20],
    us = us, now_ms = math.floor(us / 1000), warnings = {} }
end

-- A scope an order counts for: its kind, how it is called, its book and field names, its limits (nil: it has none), and
-- what its open orders are worth.
local function scope_of(kind, label, book, prefix, limits)
  local f = fields_of(prefix)
  local buys, sells = figure(book, f.buy_notional), figure(book, f.sell_notional)
  return { kind = kind, label = label, book = book, f = f, limits = limits, buys = buys, sells = sells, open = buys + sells }
end

local function read_limits(o, base)
  local strategy, product = 'strategy|' .. o.strategy, 'product|' .. o.product
  local raw = redis.call('HMGET', base .. ':limits', 'account', strategy, product, 'key|' .. o.by, 'key|*', 'calendar')
  local desk = redis.call('HMGET', DESK .. ':limits', 'global', 'calendar')
  o.limits = { account = limits_of(raw[1]), strategy = limits_of(raw[2]), product = limits_of(raw[3]),
    key = limits_of(raw[4] or raw[5]), desk = limits_of(desk[1]) }
  o.calendar, o.desk_calendar = raw[6] or nil, desk[2] or nil
  o.group = group_of(o.limits.product)
  if o.group then
    o.limits.group = limits_of(redis.call('HGET', base .. ':limits', 'group|' .. o.group))
  end
end

local function read_scopes(o, ctx)
  local desk = ctx.desk.book
  o.desk = scope_of('global', 'global', desk, '', o.limits.desk)
  o.account = scope_of('account', 'account', ctx.book, 'a|', o.limits.account)
  o.of_strategy = scope_of('strategy', 'strategy|' .. o.strategy, ctx.book, 's|' .. o.strategy .. '|', o.limits.strategy)
  o.of_product = scope_of('product', 'product|' .. o.product, ctx.book, 'p|' .. o.product .. '|', o.limits.product)
  o.of_key = scope_of('key', 'key|' .. o.by, ctx.book, 'k|' .. o.by .. '|', o.limits.key)
  o.scopes = { o.desk, o.account, o.of_strategy, o.of_product, o.of_key }
  o.sp = fields_of('sp|' .. o.strategy .. '|' .. o.product .. '|')
  if o.group then
    o.of_group = scope_of('group', 'group|' .. o.group, ctx.book, 'g|' .. o.group .. '|', o.limits.group)
  end
  o.day = day_number(o.us, o.calendar)
  o.desk_day = o.desk_calendar == o.calendar and o.day or day_number(o.us, o.desk_calendar)
end

-- Prices of the order's own product and of every product held.
local function read_references(o, ctx)
  local held, names = words_of(value_of(ctx.book, 'held')), { o.product }
  for _, product in ipairs(held) do
    if product ~= o.product then
      names[#names + 1] = product
    end
  end
  local raw = redis.call('HMGET', ctx.base .. ':reference', unpack(names))
  o.ref = raw[1] and reference_in(raw[1]) or nil
  o.held = {}
  for i = 2, #names do
    o.held[i - 1] = { names[i], raw[i] and reference_in(raw[i]) or nil }
  end
end

-- ---------------------------------------------------------------------------------------------------------------------
-- the rules

-- Every limit a scope must have, those too that no order is compared with because they halt what has gone wrong.
local function check_limits(o, scope)
  if scope.limits then
    for _, name in ipairs(missing_in(scope.limits, scope.kind)) do
      missing_limit(o, scope.label, name)
    end
  elseif scope ~= o.of_strategy and scope ~= o.of_product then
    deny(o, 'MISSING_LIMIT', scope.label, '', '', '', 'no limits are set for ' .. scope.label)
  end
end

local function check_allowed(o)
  local product, strategy = o.limits.product, o.limits.strategy
  if not product then
    deny(o, 'SYMBOL_NOT_ALLOWED', o.of_product.label, o.product, '', '', 'the account may not trade this product')
  elseif (product.word.restricted or 'no') ~= 'no' then
    deny(o, 'SYMBOL_NOT_ALLOWED', o.of_product.label, 'restricted', '', '', 'the product is on the restricted list')
  end
  if not strategy then
    deny(o, 'STRATEGY_NOT_APPROVED', o.of_strategy.label, o.strategy, '', '', 'the account knows no such strategy')
  else
    local versions = strategy.word.versions
    if versions and versions ~= 'any' and not (',' .. versions .. ','):find(',' .. o.version .. ',', 1, true) then
      deny(o, 'STRATEGY_NOT_APPROVED', o.of_strategy.label, o.version, versions, '', 'this version is not approved')
    end
  end
end

-- What of a position an order may take without turning it: the position on its other side, less the reducers open.
local function room_to_reduce(o, book, f)
  local lots = figure(book, f.lots)
  if o.side == 'SELL' then
    return math.max(lots, 0), figure(book, f.sell_lots) + o.lots
  end
  -- 0 - lots, because -lots is -0 where nothing is held, and is written so.
  return math.max(0 - lots, 0), figure(book, f.buy_lots) + o.lots
end

local function check_states(o)
  local scopes, raw = { o.account, o.of_strategy, o.of_product }, o.states
  local desk = redis.call('HMGET', DESK .. ':state', 'global', 'cause|global')
  local real = redis.call('HMGET', DESK .. ':environment', 'name', 'armed_until_ms')
  if real[1] == 'live' and tonumber(real[2] or '0') <= o.now_ms then
    deny(o, 'NOT_ARMED', 'global', real[2] or '0', text(o.now_ms), 'ms', 'real money: somebody must arm the desk first')
  end
  local found = { { o.desk, desk[1], desk[2] } }
  for i, scope in ipairs(scopes) do
    -- A strategy or product without limits has had its denial.
    if scope.limits or i == 1 then
      found[#found + 1] = { scope, raw[i], raw[i + 3] }
    end
  end
  for _, entry in ipairs(found) do
    local scope, state, cause = entry[1], entry[2] or nil, entry[3]
    local level = state and LEVELS[state]
    cause = cause and cause ~= '' and cause or nil
    if not level then
      deny(o, 'MISSING_STATE', scope.label, state or '', '', '', 'no trading state is set for ' .. scope.label)
    elseif level >= 2 then
      deny(o, cause or 'TRADING_HALTED', scope.label, state, 'ACTIVE', '', 'trading is halted for ' .. scope.label)
    elseif level == 1 then
      local of_strategy = scope == o.of_strategy
      local room, wanted = o.room, o.wanted
      if of_strategy then
        room, wanted = o.strategy_room, o.strategy_wanted
      end
      if wanted > room then
        deny(o, cause or 'REDUCE_ONLY_MODE', scope.label, text(wanted), text(room), 'lots',
          'only orders that reduce the position are taken for ' .. scope.label)
      end
    end
  end
  if o.reduce_only == '1' and o.wanted > o.room then
    deny(o, 'REDUCE_ONLY_WOULD_INCREASE', 'account', text(o.wanted), text(o.room), 'lots',
      'a reduce-only order must not increase or turn the position, open orders counted')
  end
end

-- A market that can be traded on. Returns whether the reference can be used for a valuation.
local function check_market(o)
  local scope, limits, ref = o.of_product.label, o.limits.product, o.ref
  local stale_ms = number_of(o.limits.account, 'reference_stale_ms')
  o.stale_ms = stale_ms
  if not ref then
    deny(o, 'MISSING_REFERENCE', scope, '', '', '', 'no reference price is known for ' .. o.product)
    return false
  end
  -- A price from the future is no fresher: the clock was set back since it came in.
  local age_ms = math.abs(o.now_ms - ref.set_ms)
  if stale_ms and age_ms > stale_ms then
    deny(o, 'STALE_REFERENCE', scope, text(age_ms), text(stale_ms), 'ms', 'the reference price is too old')
    return false
  end
  if ref.bid >= ref.ask then
    deny(o, 'BAD_BOOK', scope, text(ref.bid), text(ref.ask), 'ticks', 'the market is locked or crossed')
  elseif limits then
    compare(o, limits, scope, 'max_spread_ppm', ppm_up(2 * (ref.ask - ref.bid), ref.bid + ref.ask), 'ppm', 'BAD_BOOK',
      'spread of the market')
  end
  if ref.volatile_until_ms > o.now_ms and not o.reduces then
    deny(o, 'VOLATILITY_HALT', scope, text(ref.volatile_until_ms - o.now_ms), '0', 'ms',
      'the price moved too fast; only orders that reduce the position are taken')
  end
  return true
end

-- Where a triggered bracket's limit lies beyond its trigger (Coinbase: 5 %), in parts per million.
local BRACKET_PPM = 50000

function bracket_ticks(stop_ticks)
  return mul_div_up(stop_ticks, 1000000 + BRACKET_PPM, 1000000)
end

-- The price the order is valued at, in ticks: the worst it can reasonably be executed at. nil where none is known.
local function price_of(o)
  if o.type == 'BRACKET' and o.side == 'BUY' then
    return bracket_ticks(o.stop_ticks)
  end
  local buffer = number_of(o.limits.account, 'market_buffer_ppm')
  if o.side == 'SELL' then
    -- A sell with a limit below the market is executed at the market: valued at its limit it would pass as small.
    return math.max(o.ticks or 0, o.ref.bid)
  end
  return o.ticks or (buffer and mul_div_up(o.ref.ask, 1000000 + buffer, 1000000))
end

local function median(packed)
  local sizes = {}
  for word in packed:gmatch('%d+') do
    sizes[#sizes + 1] = tonumber(word)
  end
  if #sizes < RECENT_NEEDED then
    return nil
  end
  table.sort(sizes)
  return sizes[math.floor((#sizes + 1) / 2)]
end

local function check_price(o)
  local scope, limits, ref = o.of_product.label, o.limits.product, o.ref
  local touch = o.side == 'BUY' and ref.ask or ref.bid
  local mid2 = ref.bid + ref.ask
  if o.stop_ticks then
    -- Executed only where the market is then: what may be wrong is a limit far beyond the trigger, or a trigger that
    -- the market has passed already, which would make a market order of it.
    if o.type == 'STOP_LIMIT' then
      compare(o, limits, scope, 'collar_ppm', ppm_up(math.abs(o.ticks - o.stop_ticks), o.stop_ticks), 'ppm',
        'PRICE_COLLAR', 'distance of the limit from the trigger')
    end
    -- A bracket that buys back, too, is triggered from below, and one that sells from above.
    if (o.side == 'BUY' and o.stop_ticks <= ref.ask) or (o.side == 'SELL' and o.stop_ticks >= ref.bid) then
      deny(o, 'STOP_PRICE', scope, text(o.stop_ticks), text(touch), 'ticks', 'the market has passed the trigger already')
    end
    return
  end
  compare(o, limits, scope, 'collar_ppm', ppm_up(math.abs(2 * (o.ticks or touch) - mid2), mid2), 'ppm', 'PRICE_COLLAR',
    'distance from the middle of the market')
  local crosses = not o.ticks or (o.side == 'BUY' and o.ticks >= ref.ask) or (o.side == 'SELL' and o.ticks <= ref.bid)
  local depth = crosses and (o.side == 'BUY' and ref.ask_lots or ref.bid_lots)
  if depth == 0 and limits.hard.max_depth_ppm and limits.hard.max_depth_ppm < UNLIMITED then
    deny(o, 'MISSING_REFERENCE', scope, '', '', '', 'the size at the touch is not known')
  else
    compare(o, limits, scope, 'max_depth_ppm', depth and depth > 0 and ppm_up(o.lots, depth), 'ppm', 'FAT_FINGER',
      'size against what the market shows')
  end
end

local function check_size(o, ctx)
  local scope, limits, f = o.of_product.label, o.limits.product, o.of_product.f
  compare(o, limits, scope, 'max_order_lots', o.whole_lots or o.lots, 'lots', 'QTY_EXCEEDS_MAX', 'order quantity')
  local usual = limits.hard.fat_finger_ppm and limits.hard.fat_finger_ppm < UNLIMITED
    and median(value_of(ctx.book, f.recent) or '')
  compare(o, limits, scope, 'fat_finger_ppm', usual and ppm_up(o.lots, usual), 'ppm', 'FAT_FINGER',
    'size against the median of the last orders')
  local position = function(names)
    local lots = figure(ctx.book, names.lots)
    if o.side == 'BUY' then
      return lots + figure(ctx.book, names.buy_lots) + o.lots
    end
    return figure(ctx.book, names.sell_lots) + o.lots - lots
  end
  local after = position(f)
  compare(o, limits, scope, 'max_position_lots', after, 'lots', 'MAX_POSITION', 'position with open orders')
  compare(o, limits, scope, 'max_strategy_position_lots', position(o.sp), 'lots', 'MAX_POSITION',
    "the strategy's position with open orders")
  if after > INTEGER_MAX then
    deny(o, 'VALUE_TOO_LARGE', scope, text(after), text(INTEGER_MAX), 'lots', 'the position would be more than can be counted')
  end
end

-- What every scope with limits compares. `n` nil: the order could not be valued. Asked here whether a level is passed at
-- all, because this is half of all comparing.
local function check_scope(o, scope, n)
  local book, f, limits, label, open = scope.book, scope.f, scope.limits, scope.label, scope.open
  local number = scope == o.desk and o.desk_day or o.day
  local soft, day = limits.soft, today(book, f, number)
  scope.day, scope.today = number, day
  if n and n > soft.max_order_notional then
    compare(o, limits, label, 'max_order_notional', n, 'micros', 'NOTIONAL_EXCEEDS_MAX', 'order notional')
  end
  -- An order that is amended is counted already.
  local new = o.amends and 0 or 1
  local orders = figure(book, f.open_orders) + 1
  if orders > soft.max_open_orders then
    compare(o, limits, label, 'max_open_orders', orders, 'orders', 'MAX_OPEN_ORDERS', 'open orders')
  end
  if n and open + n > soft.max_open_notional then
    compare(o, limits, label, 'max_open_notional', open + n, 'micros', 'MAX_OPEN_VALUE', 'value of open orders')
  end
  if day[1] + new > soft.max_daily_orders then
    compare(o, limits, label, 'max_daily_orders', day[1] + new, 'orders', 'DAILY_ORDERS', "today's orders")
  end
  if n and day[2] + open + n > soft.max_daily_turnover then
    compare(o, limits, label, 'max_daily_turnover', day[2] + open + n, 'micros', 'DAILY_TURNOVER',
      "today's turnover with open orders")
  end
end

local function check_gross(o, scope, n, reduces)
  local gross = n and figure(scope.book, scope.f.gross) + scope.open + n
  compare(o, scope.limits, scope.label, 'max_gross_exposure', not reduces and gross, 'micros', 'MAX_GROSS',
    'gross exposure with open orders')
  if gross and gross > INTEGER_MAX then
    deny(o, 'VALUE_TOO_LARGE', scope.label, text(gross), text(INTEGER_MAX), 'micros', 'gross exposure is more than can be counted')
  end
  return gross
end

local function check_net(o, scope, n, reduces)
  local value = figure(scope.book, scope.f.value)
  local net
  if n and o.side == 'BUY' then
    net = value + scope.buys + n
  elseif n then
    net = scope.sells + n - value
  end
  compare(o, scope.limits, scope.label, 'max_net_exposure', not reduces and net, 'micros', 'MAX_NET',
    'net exposure if every open order of this side were filled')
end

local function check_exposures(o, n)
  local marked = { { o.desk, o.reduces }, { o.account, o.reduces }, { o.of_strategy, o.strategy_reduces } }
  local gross = {}
  for i, entry in ipairs(marked) do
    if entry[1].limits then
      gross[i] = check_gross(o, entry[1], n, entry[2])
      check_net(o, entry[1], n, entry[2])
    end
  end
  if o.of_group and o.limits.group then
    check_gross(o, o.of_group, n, o.reduces)
  end
  local product, account = o.limits.product, o.limits.account
  local of_product = product and check_gross(o, o.of_product, n, o.reduces)
  local equity = figure(o.account.book, 'a|equity')
  local share = not o.reduces and of_product and ppm_up(of_product, equity)
  if product then
    compare(o, product, o.of_product.label, 'max_concentration_ppm', share, 'ppm', 'CONCENTRATION', 'share of the equity')
  end
  if account then
    compare(o, account, 'account', 'max_concentration_ppm', share, 'ppm', 'CONCENTRATION',
      'share of one product in the equity')
    compare(o, account, 'account', 'max_leverage_ppm', not o.reduces and gross[2] and ppm_up(gross[2], equity), 'ppm',
      'LEVERAGE', 'gross exposure in parts per million of the equity')
  end
  -- Exposure counts positions at their last marks; those must not be older than any other price may be.
  for _, held in ipairs(not o.reduces and o.held or {}) do
    local ref = held[2]
    local age_ms = ref and math.abs(o.now_ms - ref.set_ms)
    if not age_ms or (o.stale_ms and age_ms > o.stale_ms) then
      deny(o, 'STALE_REFERENCE', 'product|' .. held[1], age_ms and text(age_ms) or '', text(o.stale_ms or 0), 'ms',
        'a held product has no fresh reference price')
    end
  end
end

-- Spot: a buy needs free cash for its worst value and fee, a sell needs free holdings.
local function check_funds(o, ctx, n)
  local book = ctx.book
  local fee_ppm = number_of(o.limits.account, 'taker_fee_ppm')
  if o.limits.strategy and (o.limits.strategy.word.short or 'allowed') ~= 'allowed'
    and o.side == 'SELL' and o.strategy_wanted > o.strategy_room then
    deny(o, 'SHORT_NOT_ALLOWED', o.of_strategy.label, text(o.strategy_wanted), text(o.strategy_room), 'lots',
      'the strategy may sell only what it holds, open sells counted')
  end
  if o.side == 'SELL' then
    o.cash = 0
    local free = figure(book, o.of_product.f.lots) - figure(book, o.of_product.f.sell_lots)
    if o.lots > free then
      deny(o, 'INSUFFICIENT_FUNDS', 'account', text(o.lots), text(math.max(free, 0)), 'lots', 'free holdings')
    end
    return
  end
  if not fee_ppm or not n then
    return
  end
  o.cash = n + (mul_div_up(n, fee_ppm, 1000000) or INTEGER_MAX)
  local free = figure(book, 'cash') - figure(book, 'reserved')
  if o.cash > free then
    deny(o, 'INSUFFICIENT_FUNDS', 'account', text(o.cash), text(math.max(free, 0)), 'micros', 'free cash')
  end
end

local function check_hours(o)
  local minute = minute_of_week(o.us, o.calendar)
  for _, entry in ipairs({ { o.of_strategy, o.strategy_reduces }, { o.of_product, o.reduces } }) do
    local scope, reduces = entry[1], entry[2]
    local hours = scope.limits and scope.limits.word.hours
    if hours and not reduces and not within_hours(hours, minute) then
      deny(o, 'MARKET_CLOSED', scope.label, text(minute), hours, 'minutes', 'outside the hours of trading')
    end
  end
end

local function check_self_trade(o, ctx)
  local account = o.limits.account
  -- A stop order meets nobody before it is triggered; what it meets then, the venue prevents.
  if not account or (account.word.self_trade or 'allow') == 'allow' or o.stop_ticks then
    return
  end
  local other = resting_key(ctx.base, o.product, o.side == 'BUY' and 'SELL' or 'BUY')
  local best = redis.call(o.side == 'BUY' and 'ZRANGE' or 'ZREVRANGE', other, 0, 0, 'WITHSCORES')
  local ticks = best[2] and tonumber(best[2])
  if ticks and best[1] ~= o.id and (not o.ticks or (o.side == 'BUY' and o.ticks >= ticks) or (o.side == 'SELL' and o.ticks <= ticks)) then
    deny(o, 'SELF_TRADE', 'account', o.ticks and text(o.ticks) or 'MARKET', text(ticks), 'ticks',
      'would trade with the own order ' .. best[1])
  end
end

local function check_duplicate(o, ctx)
  local window = math.max(number_of(o.limits.account, 'duplicate_window_ms') or 0,
    number_of(o.limits.strategy, 'duplicate_window_ms') or 0)
  o.duplicate_ms = window
  if window > 0 and not o.amends then
    o.duplicate_key = ctx.base .. ':dup:' .. table.concat({ o.strategy, o.product, o.side, o.type, text(o.lots), o.ticks and text(o.ticks) or '' }, '|')
      .. (o.stop_ticks and '|' .. text(o.stop_ticks) or '')
    local left = redis.call('PTTL', o.duplicate_key)
    if left > 0 then
      deny(o, 'DUPLICATE_ORDER', o.of_strategy.label, text(math.max(window - left, 0)), text(window), 'ms',
        'the same order with another id came just before')
    end
  end
end

-- Counts of the day and of windows that are no rates.
local function check_counts(o, ctx)
  for _, scope in ipairs({ o.account, o.of_strategy }) do
    local day = scope.today
    if scope.limits and day then
      local ratio = scope.limits.hard.max_order_to_trade
      local per_fill = math.ceil((day[4] + 1) / math.max(1, day[5]))
      compare(o, scope.limits, scope.label, 'max_order_to_trade', ratio and per_fill, 'ratio', 'OTR',
        "today's messages for each fill")
    end
  end
  local most, window = number_of(o.limits.strategy, 'max_repeats'), number_of(o.limits.strategy, 'repeat_window_ms')
  if most and window and not o.amends then
    o.repeat_start, o.repeats = counted(ctx.book, o.of_strategy.f.repeats, o.now_ms, window, 1)
    if o.repeats > most then
      o.repeated = true
      deny(o, 'REPEAT_EXECUTION', o.of_strategy.label, text(o.repeats), text(most), 'orders',
        'the strategy sends without a human; it is halted until one resumes it')
    end
  end
end

-- GCRA (generic cell rate algorithm), one number a scope. `kept` of the burst is not for this caller.
local function check_rate(o, book, name, label, interval, burst, kept, code)
  if not interval or not burst or interval == UNLIMITED then
    return nil
  end
  -- Never further ahead than a full burst: a clock that was set back, or a limit since raised, must not lock for long.
  local arrival = math.min(math.max(figure(book, name), o.us), o.us + burst * interval)
  local room = (burst - kept - 1) * interval
  if arrival - o.us > room then
    deny(o, code, label, text(math.ceil((arrival - o.us - room) / 1000)), '0', 'ms',
      'too many; the value is the time until one is taken again')
  end
  return arrival + interval
end

local function check_rates(o, ctx)
  for _, scope in ipairs(o.scopes) do
    local hard = scope.limits.hard
    scope.tat = check_rate(o, scope.book, scope.f.tat, scope.label, hard.order_interval_us, hard.order_burst, 0, 'RATE_LIMIT')
  end
  local hard = o.limits.account.hard
  o.msg_tat = check_rate(o, ctx.book, 'a|msg_tat', 'account', hard.message_interval_us, hard.message_burst,
    hard.cancel_reserve, 'MSG_RATE')
end

-- Whether the order was sent at another time than this server's now: it has waited too long, or a clock is wrong.
local function skewed(o)
  local account = o.limits.account
  local most = account and account.hard.max_clock_skew_ms
  local skew = math.abs(o.now_ms - integer(o.sent_ms))
  if most and skew > most then
    deny(o, 'CLOCK_SKEW', 'account', text(skew), text(most), 'ms', "the caller's clock and the ledger's differ too much")
    return true
  end
  return false
end

-- ---------------------------------------------------------------------------------------------------------------------
-- overrides: one order, over its limits, because two people said so

-- What two people may set aside for one order. Everything else stands: halts and what tripped them, what is missing or
-- stale, money and holdings that are not there, what may not be traded at all.
-- How far ahead the end of an order must be, so that it can reach the venue before.
local END_MARGIN_MS = 1000

local OVERRIDABLE = { QTY_EXCEEDS_MAX = true, NOTIONAL_EXCEEDS_MAX = true, FAT_FINGER = true, PRICE_COLLAR = true,
  MAX_POSITION = true, MAX_GROSS = true, MAX_NET = true, CONCENTRATION = true, LEVERAGE = true, MAX_OPEN_ORDERS = true,
  MAX_OPEN_VALUE = true, OTR = true, DAILY_ORDERS = true, DAILY_TURNOVER = true, DUPLICATE_ORDER = true,
  MARKET_CLOSED = true, VOLATILITY_HALT = true }

-- The approved proposal for exactly this order, if it may still be used; nil where there is none one can rely on.
local function override_of(o, base)
  local id = redis.pcall('GET', base .. ':override:' .. o.fingerprint)
  local packed = type(id) == 'string' and redis.pcall('HGET', base .. ':approvals', id)
  local read, proposal = pcall(cjson.decode, packed)
  if not read or type(proposal) ~= 'table' or proposal.kind ~= 'OVERRIDE' or proposal.status ~= 'APPLIED'
    or proposal.id ~= id or not tonumber(proposal.expires_ms) or o.now_ms > tonumber(proposal.expires_ms) then
    return nil
  end
  local payload
  read, payload = pcall(cjson.decode, proposal.payload)
  if not read or payload.id ~= o.id or payload.fingerprint ~= o.fingerprint then
    return nil
  end
  return proposal
end

-- Makes warnings of an order's denials where every one of them may be overridden and this order's are.
local function override(o, base)
  for _, denial in ipairs(o.denials) do
    if not OVERRIDABLE[denial.code] then
      return
    end
  end
  o.override = override_of(o, base)
  if o.override then
    for _, denial in ipairs(o.denials) do
      denial.level = 'OVERRIDDEN'
      o.warnings[#o.warnings + 1] = denial
    end
    o.denials = {}
  end
end

-- Every rule with state. Fills o.denials and o.warnings; o.notional and o.cash where the order passes; o.passing where
-- it does not, for a reason that will pass.
local function decide(o, base)
  read_limits(o, base)
  if skewed(o) then
    o.passing = true
    return nil
  end
  local ctx = begin(base, o.us, names_for(o.strategy .. ' ' .. o.product .. ' ' .. o.by .. ' ' .. (o.group or '')))
  ctx.desk = begin(DESK, o.us, DESK_NAMES)
  o.lots = positive(o.lots)
  o.stop_ticks = o.stop_ticks and positive(o.stop_ticks)
  if o.amends then
    -- What the order holds so far makes room for what it is to hold.
    local was = o.amends
    add(ctx.book, 'reserved', -integer(was.reserved_cash))
    count_open(ctx, was, o.group, -1, integer(was.reserved_lots), integer(was.reserved_notional), 1)
    o.whole_lots, o.lots = o.lots, o.lots - integer(was.filled_lots)
  end
  read_scopes(o, ctx)
  read_references(o, ctx)
  o.ticks = o.ticks ~= '' and positive(o.ticks) or nil
  o.num, o.den = positive(o.num), positive(o.den)
  o.room, o.wanted = room_to_reduce(o, ctx.book, o.of_product.f)
  o.strategy_room, o.strategy_wanted = room_to_reduce(o, ctx.book, o.sp)
  o.reduces, o.strategy_reduces = o.wanted <= o.room, o.strategy_wanted <= o.strategy_room

  for _, scope in ipairs(o.scopes) do
    check_limits(o, scope)
  end
  if o.of_group then
    check_limits(o, o.of_group)
  end
  check_allowed(o)
  check_states(o)
  if o.end_ns ~= '' and tonumber(o.end_ns:sub(1, -7)) <= o.now_ms + END_MARGIN_MS then
    deny(o, 'EXPIRE_IN_PAST', 'account', o.end_ns, text(o.now_ms), 'ms', 'a GTD order must end in the future')
  end
  if not value_of(ctx.book, 'cash') then
    deny(o, 'MISSING_STATE', 'account', '', '', '', 'the account has no cash balance yet')
  end
  local usable = check_market(o)
  -- An order is sized all the same where the price is too old: what can be said of it is said.
  local ticks = usable and price_of(o) or o.ticks
  local n = ticks and value_up(o.lots, ticks, o.num, o.den)
  if ticks and not n then
    deny(o, 'VALUE_TOO_LARGE', 'account', '', text(INTEGER_MAX), 'micros', 'the order is worth more than can be counted')
  end
  if o.limits.product then
    if usable then
      check_price(o)
    end
    check_size(o, ctx)
  end
  for _, scope in ipairs(o.scopes) do
    if scope.limits then
      check_scope(o, scope, n)
    end
  end
  check_exposures(o, n)
  check_funds(o, ctx, n)
  check_hours(o)
  check_self_trade(o, ctx)
  check_duplicate(o, ctx)
  check_counts(o, ctx)
  if #o.denials > 0 and not o.proposing and not o.amends then
    override(o, base)
  end
  if #o.denials == 0 then
    o.notional = n
    check_rates(o, ctx)
    o.passing = #o.denials > 0
  end
  return ctx
end

-- ---------------------------------------------------------------------------------------------------------------------
-- the answer, written

local function answer_of(o, verdict)
  local answer = { client_order_id = o.id, verdict = verdict, product_id = o.product }
  if verdict == 'ACCEPTED' then
    answer.reserved_notional_micros, answer.reserved_cash_micros = text(o.notional), text(o.cash)
  else
    answer.denials = o.denials
  end
  if #o.warnings > 0 then
    answer.warnings = o.warnings
  end
  return cjson.encode(answer)
end

local function write_denied(o, ctx)
  local answer = answer_of(o, 'DENIED')
  local key = ctx.base .. ':order:' .. o.id
  audit(ctx, 'DENIED', o.id, o.by, '{"request":' .. o.packed .. ',"answer":' .. answer .. '}')
  if o.repeated then
    latch(ctx, o.of_strategy.label, 'HALTED', 'REPEAT_EXECUTION', text(o.repeats),
      text(o.limits.strategy.hard.max_repeats), 'more orders than a strategy may send without a human')
  end
  ctx.desk = nil
  finish(ctx)
  redis.call('HSET', key, 'fingerprint', o.fingerprint, 'status', 'DENIED', 'answer', answer,
    'strategy', o.strategy, 'product', o.product, 'side', o.side, 'type', o.type, 'tif', o.tif,
    'quantity', o.quantity, 'limit_price', o.limit_price, 'created_us', text(o.us), 'by', o.by)
  redis.call('EXPIRE', key, KEPT_DENIED_S)
  return { 'DENIED', o.stored_epoch, answer }
end

-- Adds (sign 1) or takes back (sign -1) an order's open amounts in every scope it counts for.
function count_open(ctx, order, group, sign, lots, notional, orders)
  local side, book = order.side == 'SELL' and 'sell_' or 'buy_', ctx.book
  local of = { 'a|', 'p|' .. order.product .. '|', 's|' .. order.strategy .. '|', 'k|' .. order.by .. '|' }
  for _, prefix in ipairs(of) do
    local f = fields_of(prefix)
    add(book, f.open_orders, sign * orders)
    add(book, f[side .. 'notional'], sign * notional)
  end
  if group then
    add(book, fields_of('g|' .. group .. '|')[side .. 'notional'], sign * notional)
  end
  local desk = desk_of(ctx).book
  add(desk, 'open_orders', sign * orders)
  add(desk, side .. 'notional', sign * notional)
  add(book, fields_of('p|' .. order.product .. '|')[side .. 'lots'], sign * lots)
  add(book, fields_of('sp|' .. order.strategy .. '|' .. order.product .. '|')[side .. 'lots'], sign * lots)
end

local function remember_size(book, f, lots)
  local sizes = value_of(book, f.recent)
  if sizes then
    local _, blanks = sizes:gsub(' ', ' ')
    sizes = blanks >= RECENT_KEPT - 1 and sizes:match(' (.*)$') or sizes
  end
  put_value(book, f.recent, sizes and sizes .. ' ' .. text(lots) or text(lots))
end

local function write_accepted(o, ctx)
  local book = ctx.book
  add(book, 'reserved', o.cash)
  count_open(ctx, o, o.group, 1, o.lots, o.notional, 1)
  for _, scope in ipairs(o.scopes) do
    local day = scope.today
    day[1], day[4] = day[1] + 1, day[4] + 1
    put_today(scope.book, scope.f, scope.day, day)
    if scope.tat then
      put_value(scope.book, scope.f.tat, scope.tat)
    end
  end
  if o.msg_tat then
    put_value(book, 'a|msg_tat', o.msg_tat)
  end
  if o.repeats then
    put_counted(book, o.of_strategy.f.repeats, o.repeat_start, o.repeats)
  end
  remember_size(book, o.of_product.f, o.lots)
  local warnings = #o.warnings > 0 and cjson.encode(o.warnings) or ''
  audit(ctx, 'RESERVED', o.id, o.by, '{"request":' .. o.packed .. ',"notional":"' .. text(o.notional) .. '","cash":"'
    .. text(o.cash) .. '"' .. (o.override and ',"override":"' .. o.override.id .. '"' or '') .. (warnings ~= '' and ',"warnings":' .. warnings or '') .. '}')
  for _, w in ipairs(o.warnings) do
    alert(ctx, w.level or 'SOFT', w.code, w.scope, w.value, w.limit, w.message, o.id)
  end
  local rests = o.ticks and not o.stop_ticks and (o.tif == 'GTC' or o.tif == 'GTD')
  local resting = rests and resting_key(ctx.base, o.product, o.side)
  if resting then
    redis.call('ZCARD', resting)
  end
  finish(ctx)
  local now, lots = text(o.us), text(o.lots)
  local notional, cash = text(o.notional), text(o.cash)
  redis.call('HSET', ctx.base .. ':order:' .. o.id, 'fingerprint', o.fingerprint, 'status', 'RESERVED',
    'strategy', o.strategy, 'product', o.product, 'side', o.side, 'type', o.type,
    'tif', o.tif, 'quantity', o.quantity, 'limit_price', o.limit_price, 'post_only', o.post_only,
    'lots', lots, 'filled_lots', '0', 'filled_value', '0', 'fees', '0', 'reserved_lots', lots,
    'reserved_notional', notional, 'reserved_cash', cash, 'notional', notional, 'cash', cash, 'created_us', now,
    'changed_us', now, 'by', o.by, 'reduce_only', o.reduce_only, 'version', o.version, 'warnings', warnings)
  if o.stop_ticks or o.end_ns ~= '' then
    redis.call('HSET', ctx.base .. ':order:' .. o.id, 'stop_price', o.stop_price, 'end_ns', o.end_ns)
  end
  redis.call('ZADD', ctx.base .. ':open', now, o.id)
  if resting then
    redis.call('ZADD', resting, text(o.ticks), o.id)
  end
  if o.duplicate_ms > 0 then
    redis.call('SET', o.duplicate_key, o.id, 'PX', text(o.duplicate_ms))
  end
  redis.call('XADD', ctx.base .. ':outbox', '*', 'kind', 'SUBMIT', 'id', o.id)
  if o.override then
    o.override.status = 'USED'
    redis.call('HSET', ctx.base .. ':approvals', o.override.id, cjson.encode(o.override))
    redis.call('DEL', ctx.base .. ':override:' .. o.fingerprint)
  end
  return { 'ACCEPTED', o.stored_epoch, notional, cash, warnings }
end

-- Whether this caller may be answered at all: nil, or the reply that says why not.
local function refused(o, base)
  local strategy, product = 'strategy|' .. o.strategy, 'product|' .. o.product
  o.states = redis.call('HMGET', base .. ':state', 'account', strategy, product, 'cause|account', 'cause|' .. strategy,
    'cause|' .. product, 'epoch')
  o.stored_epoch = o.states[7] or '0'
  local stored, epoch = tonumber(o.stored_epoch), tonumber(o.epoch)
  if epoch > stored then
    -- The caller has seen a newer state than this server has: it must not be reserved on.
    return { 'STALE_EPOCH', o.stored_epoch }
  elseif epoch > 0 and epoch < stored then
    return { 'NEW_EPOCH', o.stored_epoch }
  end
  return nil
end

-- KEYS[1] base.  ARGV[1]: a JSON list of id, fingerprint, strategy, product, side, type, tif, quantity, limit_price,
-- post_only, lots, ticks ('' = market), num, den, by, the list of denials found before, epoch, sent_ms, reduce_only,
-- version (all text but the denials), and where it has one of these {stop_price, stop_ticks, end_ns}. Returns {ACCEPTED, epoch, notional, cash, warnings} | {DENIED | CONFLICT, epoch,
-- answer} | {REPEATED, epoch, answer of a denial, or notional, cash, warnings} | {STALE_EPOCH | NEW_EPOCH | RECONCILING,
-- epoch}.
function reserve(keys, argv)
  local base, o = keys[1], read_order(argv[1], now_us())
  local refusal = refused(o, base)
  if refusal then
    return refusal
  end
  local known = redis.call('HMGET', base .. ':order:' .. o.id, 'fingerprint', 'answer', 'notional', 'cash', 'warnings',
    'first_notional', 'first_cash')
  if known[1] then
    if known[1] ~= o.fingerprint then
      return { 'CONFLICT', o.stored_epoch, '' }
    end
    if known[2] then
      return { 'REPEATED', o.stored_epoch, known[2] }
    end
    -- What the caller was told at first, whatever the order has been amended to since.
    return { 'REPEATED', o.stored_epoch, known[6] or known[3], known[7] or known[4], known[5] or '' }
  end
  if not is_admitted(base, o.stored_epoch) then
    return { 'RECONCILING', o.stored_epoch }
  end
  sound(base)
  if #o.denials > 0 then
    return write_denied(o, begin(base, o.us))
  end
  local ctx = decide(o, base)
  if o.passing then
    -- Not kept, because it passes by itself: the same id may come again, as it would after a 429 anywhere.
    return { 'DENIED', o.stored_epoch, answer_of(o, 'DENIED') }
  end
  if #o.denials > 0 then
    return write_denied(o, ctx)
  end
  if not o.notional or not o.cash then
    error('an order without a value passed every rule')
  end
  return write_accepted(o, ctx)
end

-- What is proposed to override for an order (packed as for reserve): it, and the rules it would break now, in one text;
-- and the instant. No text where an order of its id is known.
function override_payload(base, packed)
  local o = read_order(packed, now_us())
  if redis.call('EXISTS', base .. ':order:' .. o.id) == 1 then
    return nil, o.us
  end
  local named = {}
  o.proposing = true
  refused(o, base)
  decide(o, base)
  -- What passes by itself, as a rate does, is nothing to decide on.
  o.denials = o.passing and {} or o.denials
  for _, denial in ipairs(o.denials) do
    denial.never = not OVERRIDABLE[denial.code]
  end
  -- Name by name, because equal proposals must be equal texts.
  for _, name in ipairs({ 'strategy', 'product', 'side', 'type', 'tif', 'quantity', 'limit_price', 'post_only',
    'reduce_only', 'version', 'stop_price', 'end_ns' }) do
    if o[name] ~= '' or (name ~= 'stop_price' and name ~= 'end_ns') then
      named[#named + 1] = '"' .. name .. '":' .. cjson.encode(o[name])
    end
  end
  local denials = #o.denials > 0 and cjson.encode(o.denials) or '[]'
  return '{"id":' .. cjson.encode(o.id) .. ',"fingerprint":' .. cjson.encode(o.fingerprint) .. ',"order":{'
    .. table.concat(named, ',') .. '},"denials":' .. denials .. '}', o.us
end

-- Writes what an amendment may come to: of old and new the larger is held until the venue has said which it is.
local function write_amending(o, ctx, order)
  local resting = resting_key(ctx.base, order.product, order.side)
  local held_lots = math.max(o.lots, integer(order.reserved_lots))
  local held_notional = math.max(o.notional, integer(order.reserved_notional))
  local held_cash = math.max(o.cash, integer(order.reserved_cash))
  add(ctx.book, 'reserved', held_cash)
  count_open(ctx, order, o.group, 1, held_lots, held_notional, 1)
  for _, scope in ipairs(o.scopes) do
    local day = scope.today
    day[4] = day[4] + 1
    put_today(scope.book, scope.f, scope.day, day)
    if scope.tat then
      put_value(scope.book, scope.f.tat, scope.tat)
    end
  end
  if o.msg_tat then
    put_value(ctx.book, 'a|msg_tat', o.msg_tat)
  end
  local pending = { lots = text(o.whole_lots), quantity = o.quantity, limit_price = o.limit_price, ticks = text(o.ticks),
    left = text(o.lots), notional = text(o.notional), cash = text(o.cash), old_basis = order.basis_lots or order.lots,
    old_notional = order.notional, old_cash = order.cash, old_ticks = redis.call('ZSCORE', resting, o.id) }
  local held = { lots = text(held_lots), notional = text(held_notional), cash = text(held_cash) }
  audit(ctx, 'AMEND_REQUESTED', o.id, o.by, { to = pending, held = held })
  for _, w in ipairs(o.warnings) do
    alert(ctx, w.level or 'SOFT', w.code, w.scope, w.value, w.limit, w.message, o.id)
  end
  finish(ctx)
  local key = ctx.base .. ':order:' .. o.id
  redis.call('HSETNX', key, 'first_notional', order.notional)
  redis.call('HSETNX', key, 'first_cash', order.cash)
  redis.call('HSET', key, 'amend', cjson.encode(pending), 'basis_lots', held.lots, 'notional',
    held.notional, 'cash', held.cash, 'reserved_lots', held.lots, 'reserved_notional', held.notional, 'reserved_cash',
    held.cash)
  -- Whichever price it has at the venue, an own order from the other side must not meet it: the nearer one counts.
  redis.call('ZADD', resting, (order.side == 'BUY' and math.max or math.min)(o.ticks, pending.old_ticks), o.id)
  redis.call('XADD', ctx.base .. ':outbox', '*', 'kind', 'AMEND', 'id', o.id)
end

-- Why an order cannot be amended to `o` at all: nil, or a code, its value, its limit and the reason.
local function amend_refusal(base, o, order)
  local wanted = tonumber(o.lots) or 0
  if order.type ~= 'LIMIT' or order.tif ~= 'GTC' then
    return 'AMEND_TYPE', order.type .. ' ' .. order.tif, 'LIMIT GTC', 'the venue amends only limit orders that are good until cancelled'
  elseif order.status ~= 'OPEN' and order.status ~= 'PARTIALLY_FILLED' then
    return 'AMEND_NOT_OPEN', order.status, 'OPEN', 'only an order the venue has taken, and that has not ended, can be amended'
  elseif order.amend then
    return 'AMEND_PENDING', order.amend, '', 'another amendment is on its way to the venue'
  elseif order.cancel_entry and #redis.call('XRANGE', base .. ':outbox', order.cancel_entry, order.cancel_entry) > 0 then
    -- Once that entry is worked off the order has ended, or the venue did not cancel it and it may be amended again.
    return 'AMEND_NOT_OPEN', 'CANCEL_REQUESTED', 'OPEN', 'its cancellation is on its way to the venue'
  elseif wanted <= integer(order.filled_lots) then
    return 'AMEND_BELOW_FILLED', o.lots, order.filled_lots, 'the quantity must be more than what is filled'
  end
  return nil
end

-- ARGV[1]: the order as it is to be, packed as for reserve. Asks the venue, through the outbox, to make it so; the larger
-- of old and new is reserved meanwhile. Returns {ACCEPTED | REPEATED, epoch, notional, cash, warnings} | {DENIED, epoch,
-- answer} | {NOT_FOUND, epoch} | {STALE_EPOCH | NEW_EPOCH | RECONCILING, epoch}.
function amend(keys, argv)
  local base, o = keys[1], read_order(argv[1], now_us())
  local refusal = refused(o, base)
  if refusal then
    return refusal
  end
  local order = hash(base .. ':order:' .. o.id)
  if not order.lots then
    return { 'NOT_FOUND', o.stored_epoch }
  end
  if not is_admitted(base, o.stored_epoch) then
    return { 'RECONCILING', o.stored_epoch }
  end
  sound(base)
  local asked = order.amend and cjson.decode(order.amend) or order
  -- As numbers: the same price in other digits is the same question.
  if asked.lots == o.lots and tonumber(asked.limit_price) == tonumber(o.limit_price) and not TERMINAL[order.status] then
    return { 'REPEATED', o.stored_epoch, order.notional, order.cash, '' }
  end
  local code, value, limit, message = amend_refusal(base, o, order)
  local ctx = begin(base, o.us)
  if code then
    deny(o, code, 'account', value, limit, '', message)
  elseif #o.denials == 0 then
    -- Whoever amends, the order counts for whom it counted for.
    local by = o.by
    o.amends, o.by, o.strategy = order, order.by, order.strategy
    local decided = decide(o, base)
    o.by = by
    if #o.denials == 0 then
      write_amending(o, decided, order)
      return { 'ACCEPTED', o.stored_epoch, text(o.notional), text(o.cash), #o.warnings > 0 and cjson.encode(o.warnings) or '' }
    end
  end
  local answer = answer_of(o, 'DENIED')
  if not o.passing then
    audit(ctx, 'AMEND_DENIED', o.id, o.by, '{"request":' .. o.packed .. ',"answer":' .. answer .. '}')
    finish(ctx)
  end
  return { 'DENIED', o.stored_epoch, answer }
end

-- As reserve, but nothing is written and the id does not matter. Returns {CHECKED, epoch, answer}.
function check(keys, argv)
  local base, o = keys[1], read_order(argv[1], now_us())
  local refusal = refused(o, base)
  if refusal then
    return refusal
  end
  if not is_admitted(base, o.stored_epoch) then
    return { 'RECONCILING', o.stored_epoch }
  end
  if #o.denials == 0 then
    decide(o, base)
  end
  return { 'CHECKED', o.stored_epoch, answer_of(o, #o.denials == 0 and 'ACCEPTED' or 'DENIED') }
end

end
