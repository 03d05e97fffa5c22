-- The shared state of pre-trade risk, part 6 of 6: states, limits, approvals, the account, proofs, registration.

-- ---------------------------------------------------------------------------------------------------------------------
-- trading states

local function is_scope(base, scope)
  if base == DESK then
    return scope == 'global'
  end
  return scope == 'account' or scope:match('^strategy|[a-z0-9_]+$') or scope:match('^product|[A-Z0-9]+%-[A-Z0-9]+$')
end

-- Cancels every open order of an account that `scope` covers; returns how many were asked for.
local function cancel_covered(base, us, scope, by)
  local asked = 0
  for _, id in ipairs(redis.call('ZRANGE', base .. ':open', 0, -1)) do
    local order = redis.call('HMGET', base .. ':order:' .. id, 'strategy', 'product')
    local covered = scope == 'global' or scope == 'account' or scope == 'strategy|' .. (order[1] or '')
      or scope == 'product|' .. (order[2] or '')
    -- An order whose record is damaged must not keep the others from being cancelled.
    if covered then
      local done, reply = pcall(cancel_one, base, us, id, by)
      asked = asked + ((done and reply[1] ~= 'NOT_FOUND') and 1 or 0)
    end
  end
  return asked
end

local pending_resumes, write_proposal

-- ARGV: scope, state, by, reason, cause ('' = a person). Sets the state only where that does not allow more: of two halts the stricter one
-- stays. Anybody may do this alone; loosening is approve()'s. CANCEL_ALL also asks for the cancellation of every open
-- order the scope covers. Returns {audit number, cancels asked for, the state that holds now}.
local function tighten(keys, args)
  local base, scope, state = keys[1], args[1], args[2]
  if not LEVELS[state] then
    return redis.error_reply('ERR not a trading state: ' .. state)
  end
  if not is_scope(base, scope) then
    return redis.error_reply('ERR not a scope: ' .. scope)
  end
  local ctx = begin(base, now_us())
  local before = state_of(ctx, scope)
  local holds = state
  if before and LEVELS[before] and LEVELS[before] >= LEVELS[state] then
    holds = before
  else
    ctx.states[1] = { scope, state, args[5] or '' }
    if args[5] and args[5] ~= '' then
      alert(ctx, 'HARD', args[5], scope, '', '', args[4])
    end
  end
  local seq = audit(ctx, 'STATE', scope, args[3], { state = holds, asked = state, before = before or '',
    cause = args[5] or '', reason = args[4] })
  -- Who halts says no to whatever was to resume the scope: a later approval of it must not undo this.
  local refused = state ~= 'ACTIVE' and pending_resumes(ctx, scope) or {}
  for _, proposal in ipairs(refused) do
    audit(ctx, 'REFUSED', proposal.id, args[3], { person = '', reason = 'halted since' })
    proposal.status = 'REFUSED'
  end
  finish(ctx)
  for _, proposal in ipairs(refused) do
    write_proposal(base, proposal)
  end
  local asked = 0
  if state == 'CANCEL_ALL' then
    for _, account in ipairs(base == DESK and redis.call('SMEMBERS', DESK .. ':accounts') or {}) do
      asked = asked + cancel_covered(DESK .. ':' .. account, ctx.us, scope, args[3])
    end
    if base ~= DESK then
      asked = cancel_covered(base, ctx.us, scope, args[3])
    end
  end
  return { seq, asked, holds }
end

-- ---------------------------------------------------------------------------------------------------------------------
-- limits

local LARGER_IS_STRICTER = { order_interval_us = true, message_interval_us = true, taker_fee_ppm = true,
  market_buffer_ppm = true, cancel_reserve = true, duplicate_window_ms = true, repeat_window_ms = true,
  reject_window_ms = true, venue_error_window_ms = true, volatility_halt_ms = true, volatility_window_ms = true }
-- The limits that are words, with the strictest one where there is one; every other is a number or unlimited.
local WORDS = { short = 'denied', self_trade = 'deny', restricted = 'yes', hours = '', versions = '', group = '' }
local LEAST = { order_interval_us = 1, message_interval_us = 1, order_burst = 1, message_burst = 1 }

local function limit_word(n)
  return n == UNLIMITED and 'unlimited' or text(n)
end

local function limit_token(name, hard, soft)
  return name .. '=' .. limit_word(hard) .. (soft ~= hard and ':' .. limit_word(soft) or '')
end

local function flattened(map)
  local flat = {}
  for name, value in pairs(map) do
    flat[#flat + 1] = name
    flat[#flat + 1] = value
  end
  return flat
end

-- Raises an error where `record` cannot be the limits of `scope`.
local function check_record(base, scope, record)
  if scope == 'calendar' then
    if not record:match('^%S+ %-?%d+[%d %-]*$') then
      error('not a calendar: ' .. record)
    end
    return
  end
  if not (scope:match('^key|[%w_.*-]+$') or scope:match('^group|[%w_]+$')) or base == DESK then
    if not is_scope(base, scope) then
      error('not a scope of limits: ' .. scope)
    end
  end
  for word in record:gmatch('%S+') do
    local name, value = word:match('^([%w_]+)=(%S+)$')
    if not name then
      error('not a limit: ' .. word)
    end
    local parsed = limits_in(word)
    local hard, soft = parsed.hard[name], parsed.soft[name]
    if hard and ((hard ~= UNLIMITED and hard > INTEGER_MAX) or hard < (LEAST[name] or 0)
      or (soft > hard and not LARGER_IS_STRICTER[name])) then
      error('limit ' .. scope .. '|' .. name .. ' is out of range: ' .. value)
    end
    if not hard and not WORDS[name] then
      error('limit ' .. scope .. '|' .. name .. ' is no number: ' .. value)
    end
  end
end

local function names_in(...)
  local seen, names = {}, {}
  for _, parsed in ipairs({ ... }) do
    for _, part in ipairs({ parsed.hard, parsed.word }) do
      for name in pairs(part) do
        if not seen[name] then
          seen[name] = true
          names[#names + 1] = name
        end
      end
    end
  end
  table.sort(names)
  return names
end

-- The stricter of two values; unlimited is the loosest in either direction.
local function stricter_of(name, a, b)
  if not LARGER_IS_STRICTER[name] or a == UNLIMITED or b == UNLIMITED then
    return math.min(a, b)
  end
  return math.max(a, b)
end

-- The stricter of two records, limit by limit, and whether the new one asks for more than that.
local function stricter(before, after)
  local old, new, tokens, looser = limits_in(before), limits_in(after), {}, false
  for _, name in ipairs(names_in(old, new)) do
    local a, b = old.hard[name], new.hard[name]
    if a and b then
      local hard, soft = stricter_of(name, a, b), stricter_of(name, old.soft[name], new.soft[name])
      soft = LARGER_IS_STRICTER[name] and soft or math.min(soft, hard)
      tokens[#tokens + 1] = limit_token(name, hard, soft)
      looser = looser or hard ~= b or soft ~= new.soft[name]
    elseif old.word[name] and new.word[name] then
      local word = new.word[name] == WORDS[name] and new.word[name] or old.word[name]
      tokens[#tokens + 1] = name .. '=' .. word
      looser = looser or word ~= new.word[name]
    elseif b or new.word[name] then
      -- Missing so far, which denies; or another kind of value: neither is stricter without a second look.
      looser = true
      tokens[#tokens + 1] = a and limit_token(name, a, old.soft[name])
        or old.word[name] and name .. '=' .. old.word[name] or nil
    end
  end
  return table.concat(tokens, ' '), looser
end

local function same_record(a, b)
  local one, other = limits_in(a), limits_in(b)
  for _, name in ipairs(names_in(one, other)) do
    if one.hard[name] ~= other.hard[name] or one.soft[name] ~= other.soft[name] or one.word[name] ~= other.word[name] then
      return false
    end
  end
  return true
end

-- Amounts of a product that changes its group move with it.
local function move_group(ctx, product, before, after)
  local from, to = group_of(limits_of(before)), group_of(limits_of(after))
  if from == to then
    return
  end
  local book, p = ctx.book, fields_of('p|' .. product .. '|')
  for _, name in ipairs({ 'buy_notional', 'sell_notional', 'gross' }) do
    local amount = figure(book, p[name])
    if from then
      add(book, fields_of('g|' .. from .. '|')[name], -amount)
    end
    if to then
      add(book, fields_of('g|' .. to .. '|')[name], amount)
    end
  end
end

-- Writes changed records ({scope -> text, or false: removed}); returns the new version.
local function apply_limits(ctx, before, changes, by, baseline, reason)
  local base, scopes = ctx.base, {}
  for scope in pairs(changes) do
    scopes[#scopes + 1] = scope
  end
  table.sort(scopes)
  local version = integer(before.version or '0') + 1
  for _, scope in ipairs(scopes) do
    local product = scope:match('^product|(.+)$')
    if product then
      move_group(ctx, product, before[scope], changes[scope] or nil)
    end
  end
  audit(ctx, 'LIMITS', text(version), by, { version = version, changed = changes, reason = reason })
  redis.call('HLEN', base .. ':state')
  redis.call('SCARD', DESK .. ':accounts')
  finish(ctx)
  ctx.entries, ctx.alerts, ctx.states = {}, {}, {}
  for _, scope in ipairs(scopes) do
    if changes[scope] then
      redis.call('HSET', base .. ':limits', scope, changes[scope])
      if is_scope(base, scope) then
        redis.call('HSETNX', base .. ':state', scope, 'ACTIVE')
      end
    else
      redis.call('HDEL', base .. ':limits', scope)
    end
  end
  redis.call('HSET', base .. ':limits', 'version', text(version))
  if baseline ~= '' then
    redis.call('HSET', base .. ':limits', 'baseline', baseline)
  end
  if base ~= DESK then
    redis.call('SADD', DESK .. ':accounts', base:sub(#DESK + 2))
  end
  return version
end

-- ---------------------------------------------------------------------------------------------------------------------
-- approvals: what needs a second person

local APPROVALS_KEPT_MS = 30 * 86400 * 1000

local function proposal_of(base, id)
  local packed = redis.call('HGET', base .. ':approvals', id)
  return packed and cjson.decode(packed) or nil
end

write_proposal = function(base, proposal)
  redis.call('HSET', base .. ':approvals', proposal.id, cjson.encode(proposal))
end

local function status_of(proposal, now_ms)
  local ends = proposal.status == 'PENDING' or (proposal.kind == 'OVERRIDE' and proposal.status == 'APPLIED')
  if ends and now_ms > tonumber(proposal.expires_ms) then
    return 'EXPIRED'
  end
  return proposal.status
end

-- What waits to resume a scope, oldest first. Damaged proposals must not keep anybody from halting.
pending_resumes = function(ctx, scope)
  local flat, found = redis.pcall('HGETALL', ctx.base .. ':approvals'), {}
  for i = 2, #flat, 2 do
    local read, proposal = pcall(cjson.decode, flat[i])
    if read and proposal.kind == 'RESUME' and cjson.decode(proposal.payload).scope == scope
      and status_of(proposal, math.floor(ctx.us / 1000)) == 'PENDING' then
      found[#found + 1] = proposal
    end
  end
  table.sort(found, function(a, b) return tonumber(a.id) < tonumber(b.id) end)
  return found
end

-- Proposes; a pending one of the same content is not made twice. Writes the context. Returns the proposal.
local function write_proposed(ctx, kind, payload, reason, by, person, ttl_ms)
  local base, now_ms = ctx.base, math.floor(ctx.us / 1000)
  for id, packed in pairs(hash(base .. ':approvals')) do
    local other = cjson.decode(packed)
    if other.kind == kind and other.payload == payload and other.person == person
      and status_of(other, now_ms) == 'PENDING' then
      finish(ctx)
      return other
    elseif now_ms - tonumber(other.created_ms) > APPROVALS_KEPT_MS then
      redis.call('HDEL', base .. ':approvals', id)
    end
  end
  local id = text(figure(ctx.book, 'seq') + 1)
  local expires = text(now_ms + ttl_ms)
  local digest = redis.sha1hex(table.concat({ base, id, kind, payload, reason, person, expires }, '\n'))
  local proposal = { id = id, kind = kind, payload = payload, reason = reason, by = by, person = person,
    digest = digest, created_ms = text(now_ms), expires_ms = expires, status = 'PENDING' }
  audit(ctx, 'PROPOSED', id, by, proposal)
  finish(ctx)
  write_proposal(base, proposal)
  return proposal
end

-- What still stands in the way of resuming a scope; nil where nothing does.
local function still_breached(ctx, scope)
  local base, book = ctx.base, ctx.book
  local raw = redis.call('HMGET', base .. ':limits', scope, 'account', 'calendar')
  local record, now_ms = limits_of(raw[1]), math.floor(ctx.us / 1000)
  local kind, name = scope:match('^(%a+)|?(.*)$')
  local prefix = ({ global = '', account = 'a|', strategy = 's|' .. name .. '|', product = 'p|' .. name .. '|' })[kind]
  local f = fields_of(prefix)
  if record then
    local start = today(book, f, day_number(ctx.us, raw[3] or nil))[3]
    local loss, most = start - figure(book, f.pnl), record.hard.max_daily_loss
    if most and loss >= most then
      return 'DAILY_LOSS: ' .. text(loss) .. ' micros lost since the day began, limit ' .. limit_word(most)
    end
    local fallen
    if kind == 'strategy' then
      fallen = strategy_fall(record, figure(book, f.peak), figure(book, f.pnl))
    elseif kind ~= 'product' then
      fallen = fall_ppm(figure(book, f.peak), figure(book, f.equity))
    end
    most = record.hard.max_drawdown_ppm
    if fallen and most and most < UNLIMITED and fallen >= most then
      return 'DRAWDOWN: ' .. text(fallen) .. ' ppm below the peak, limit ' .. limit_word(most)
    end
  end
  local ref, account = kind == 'product' and reference_of(base, name), limits_of(raw[2])
  if ref and ref.bid > ref.ask then
    return 'BAD_BOOK: the market is crossed'
  end
  local stale = account and account.hard.reference_halt_ms
  if ref and stale and now_ms - ref.set_ms > stale then
    return 'STALE_REFERENCE: the reference price is ' .. text(now_ms - ref.set_ms) .. ' ms old'
  end
  return nil
end

-- What a rule has counted begins anew when a person resumes.
local RESETS = { COOLDOWN = 'streak', REPEAT_EXECUTION = 'repeats', REJECT_STORM = 'rejects', VENUE_UNHEALTHY = 'venue_errors' }

local count_differences

local function resume(ctx, scope, by, reason)
  local base = ctx.base
  local cause = redis.call('HGET', base .. ':state', 'cause|' .. scope) or ''
  local breached = still_breached(ctx, scope)
  -- Not by the cause: a person who halts further has taken it away.
  if not breached and (scope == 'account' or scope == 'global') then
    local differences = count_differences(base)
    breached = differences > 0 and 'INVARIANT: ' .. text(differences) .. ' figures of the books do not add up' or nil
  end
  if breached then
    return breached
  end
  local name = RESETS[cause]
  if name then
    local prefix = scope == 'account' and 'a|' or 's|' .. scope:sub(10) .. '|'
    put_value(ctx.book, prefix .. name, name == 'streak' and 0 or '0 0')
  end
  local before = state_of(ctx, scope)
  ctx.states[1] = { scope, 'ACTIVE', '' }
  audit(ctx, 'STATE', scope, by, { state = 'ACTIVE', before = before or '', cause = '', reason = reason })
  return nil
end

-- ARGV: scope, reason, by, person, ttl_ms. Asks for another person's approval of ACTIVE. Returns the proposal as JSON.
local function propose_resume(keys, args)
  local base, scope = keys[1], args[1]
  if not is_scope(base, scope) then
    return redis.error_reply('ERR not a scope: ' .. scope)
  end
  local ctx = begin(base, now_us())
  -- What is approved is the end of this halt, so it names the state and what tripped; written by hand, because equal
  -- proposals must be equal texts.
  local state = redis.call('HMGET', base .. ':state', scope, 'cause|' .. scope)
  local payload = string.format('{"scope":"%s","state":"%s","cause":"%s"}', scope, state[1] or '', state[2] or '')
  return cjson.encode(write_proposed(ctx, 'RESUME', payload, args[2], args[3], args[4], integer(args[5])))
end

-- ARGV: an order packed as for reserve, reason, by, person, ttl_ms. Asks for another person's approval that this one
-- order may go over its limits until then. Returns {PROPOSED, proposal as JSON} | {KNOWN, ''}: its id is an order's.
local function propose_override(keys, args)
  local base = keys[1]
  if base == DESK or args[4] == '' then
    return redis.error_reply('ERR an override is proposed for an order of an account, by a person')
  end
  local payload, us = override_payload(base, args[1])
  if not payload then
    return { 'KNOWN', '' }
  end
  local ctx = begin(base, us)
  return { 'PROPOSED', cjson.encode(write_proposed(ctx, 'OVERRIDE', payload, args[2], args[3], args[4], integer(args[5]))) }
end

-- ARGV: payload {cash, positions} as JSON, reason, by, person, ttl_ms. Asks for another person's approval to book what
-- came or went without an order. Returns the proposal as JSON.
local function propose_adjust(keys, args)
  local payload = cjson.decode(args[1])
  if keys[1] == DESK or args[4] == '' then
    return redis.error_reply('ERR books are adjusted of an account, by a person')
  end
  integer(payload.cash)
  for product, change in pairs(payload.positions) do
    if integer(change.lots) == 0 and integer(change.cost) ~= 0 then
      error('cost of ' .. product .. ' does not go with its lots')
    end
  end
  local ctx = begin(keys[1], now_us())
  return cjson.encode(write_proposed(ctx, 'ADJUST', args[1], args[2], args[3], args[4], integer(args[5])))
end

-- ARGV: id, digest, by, person. The second person's yes. Returns {outcome, detail}.
local function approve(keys, args)
  local base, id = keys[1], args[1]
  if args[4] == '' then
    return redis.error_reply('ERR an approval needs a person')
  end
  local ctx, proposal = begin(base, now_us()), proposal_of(base, id)
  if not proposal then
    return { 'NOT_FOUND', '' }
  end
  local status = status_of(proposal, math.floor(ctx.us / 1000))
  if status ~= 'PENDING' then
    return { status == 'EXPIRED' and 'EXPIRED' or 'DONE', status }
  elseif proposal.person == args[4] then
    return { 'SAME_PERSON', proposal.person }
  elseif proposal.digest ~= args[2] then
    return { 'CHANGED', proposal.digest }
  end
  sound(base)
  local payload = cjson.decode(proposal.payload)
  local by = proposal.by .. ' and ' .. args[3]
  local approved = { kind = proposal.kind, first = proposal.person, second = args[4] }
  if proposal.kind == 'RESUME' then
    local state = redis.call('HMGET', base .. ':state', payload.scope, 'cause|' .. payload.scope)
    if (state[1] or '') ~= payload.state or (state[2] or '') ~= payload.cause then
      return { 'CHANGED', payload.scope .. ' is ' .. (state[1] or '') .. ' since, ' .. (state[2] or '') }
    end
    local breached = resume(ctx, payload.scope, by, proposal.reason)
    if breached then
      return { 'STILL_BREACHED', breached }
    end
    audit(ctx, 'APPROVED', id, args[3], approved)
    finish(ctx)
  elseif proposal.kind == 'OVERRIDE' then
    if redis.call('EXISTS', base .. ':order:' .. payload.id) == 1 then
      return { 'CHANGED', 'an order ' .. payload.id .. ' has come since' }
    end
    audit(ctx, 'APPROVED', id, args[3], approved)
    finish(ctx)
    redis.call('SET', base .. ':override:' .. payload.fingerprint, id, 'PXAT', proposal.expires_ms)
  elseif proposal.kind == 'ADJUST' then
    local marked = begin(base, ctx.us, MARK_NAMES)
    audit(marked, 'APPROVED', id, args[3], approved)
    adjust(marked, payload, by, proposal.reason)
    finish(marked)
  else
    local before = hash(base .. ':limits')
    if before.version ~= payload.version then
      return { 'CHANGED', 'the limits have changed since: version ' .. (before.version or '0') }
    end
    audit(ctx, 'APPROVED', id, args[3], approved)
    apply_limits(ctx, before, payload.changes, by, '', proposal.reason)
  end
  proposal.status, proposal.approved_by, proposal.approver = 'APPLIED', args[3], args[4]
  write_proposal(base, proposal)
  return { 'APPLIED', '' }
end

-- ARGV: id, by, person, reason. Ends a proposal, or an override that was not used yet; anybody may, its author too.
-- Returns {outcome, detail}.
local function refuse(keys, args)
  local base, ctx, proposal = keys[1], begin(keys[1], now_us()), proposal_of(keys[1], args[1])
  if not proposal then
    return { 'NOT_FOUND', '' }
  end
  local status = status_of(proposal, math.floor(ctx.us / 1000))
  if status ~= 'PENDING' and not (proposal.kind == 'OVERRIDE' and status == 'APPLIED') then
    return { 'DONE', status }
  end
  audit(ctx, 'REFUSED', args[1], args[2], { person = args[3], reason = args[4] })
  finish(ctx)
  proposal.status = 'REFUSED'
  write_proposal(base, proposal)
  return { 'REFUSED', '' }
end

-- A file's record where the file was edited, and what holds everywhere else: an edit of one limit must not undo what was
-- approved for another. `former` is the file's record before the edit.
local function edited(current, former, record)
  if not current or not former then
    return record
  end
  local holds, old, new, tokens = limits_in(current), limits_in(former), limits_in(record), {}
  for _, name in ipairs(names_in(new)) do
    local same = old.hard[name] == new.hard[name] and old.word[name] == new.word[name]
      and (not new.hard[name] or old.soft[name] == new.soft[name])
    local from = same and (holds.hard[name] or holds.word[name]) and holds or new
    tokens[#tokens + 1] = from.hard[name] and limit_token(name, from.hard[name], from.soft[name])
      or name .. '=' .. from.word[name]
  end
  return table.concat(tokens, ' ')
end

-- What a file asks for, given the file as it was taken last ({scope -> record}) and what holds.
local function edited_file(before, former, file)
  local wanted = {}
  for scope, record in pairs(file) do
    if scope == 'calendar' then
      wanted[scope] = former[scope] == record and before[scope] or record
    elseif before[scope] or former[scope] ~= record then
      wanted[scope] = edited(before[scope], former[scope], record)
    end
  end
  for scope, record in pairs(before) do
    -- A scope the file never had was added since, by two people.
    if not file[scope] and not former[scope] then
      wanted[scope] = record
    end
  end
  return wanted
end

-- ARGV: by, person, reason, ttl_ms, baseline, then scope, record … all of them. The first time all are taken; later
-- what is stricter holds at once and what is looser becomes one proposal. With a baseline (the digest of a file) they
-- are a file's: one that was taken before changes nothing, of another only what was edited in it counts, so that
-- neither undoes what was approved since.
-- Returns {version, changes as JSON, id of the proposal or ''}.
local function set_limits(keys, args)
  local base, by, person, baseline = keys[1], args[1], args[2], args[5]
  local before, wanted, now, later = hash(base .. ':limits'), {}, {}, {}
  if baseline ~= '' and before.baseline == baseline then
    return { integer(before.version), '{}', '' }
  end
  for i = 6, #args, 2 do
    check_record(base, args[i], args[i + 1])
    wanted[args[i]] = args[i + 1]
  end
  local file = wanted
  if baseline ~= '' and before.version then
    wanted = edited_file(before, hash(base .. ':baseline'), file)
  end
  for scope, record in pairs(wanted) do
    if not before.version then
      now[scope] = record
    elseif scope == 'calendar' and before[scope] and before[scope]:match('^%S+') == record:match('^%S+') then
      now[scope] = before[scope] ~= record and record or nil
    elseif not before[scope] or scope == 'calendar' then
      later[scope] = before[scope] ~= record and record or nil
    else
      local merged, looser = stricter(before[scope], record)
      now[scope] = not same_record(merged, before[scope]) and merged or nil
      later[scope] = looser and record or nil
    end
  end
  for scope in pairs(before) do
    if not wanted[scope] and scope ~= 'version' and scope ~= 'baseline' then
      now[scope] = false
    end
  end
  redis.call('HLEN', base .. ':approvals')
  local ctx, version = begin(base, now_us()), integer(before.version or '0')
  if next(now) ~= nil then
    version = apply_limits(ctx, before, now, by, baseline, args[3])
  elseif baseline ~= '' then
    redis.call('HSET', base .. ':limits', 'baseline', baseline)
  end
  if baseline ~= '' then
    redis.call('DEL', base .. ':baseline')
    redis.call('HSET', base .. ':baseline', unpack(flattened(file)))
  end
  local proposal = ''
  if next(later) ~= nil then
    local payload = cjson.encode({ version = text(version), changes = later })
    proposal = write_proposed(ctx, 'LIMITS', payload, args[3], by, person, integer(args[4])).id
  end
  return { version, next(now) == nil and '{}' or cjson.encode(now), proposal }
end

-- ---------------------------------------------------------------------------------------------------------------------
-- the account

-- ARGV: by, cash_micros, then product, lots, cost_micros … Opens the books once; afterwards only fills change them.
local function open_account(keys, args)
  local base = keys[1]
  if redis.call('HEXISTS', base .. ':book', 'cash') == 1 then
    return 'ALREADY'
  end
  local ctx, opening, products, rows = begin(base, now_us(), MARK_NAMES), {}, {}, {}
  for i = 3, #args, 3 do
    local product, lots, cost = args[i], integer(args[i + 1]), integer(args[i + 2])
    if (lots == 0 and cost ~= 0) or lots * cost < 0 then
      error('opening cost of ' .. product .. ' does not go with its position')
    end
    opening[product] = { lots = args[i + 1], cost = args[i + 2] }
    products[product] = reference_of(base, product) or false
    rows[#rows + 1] = { product, lots, cost }
  end
  sound(base)
  local mark = begin_mark(ctx, products)
  put_value(ctx.book, 'cash', integer(args[2]))
  for _, row in ipairs(rows) do
    local f = fields_of('p|' .. row[1] .. '|')
    add(ctx.book, f.lots, row[2])
    add(ctx.book, f.cost, row[3])
    note_holders(ctx.book, row[1], nil)
  end
  audit(ctx, 'OPENED', 'account', args[1], { cash = args[2], positions = opening })
  end_mark(ctx, mark)
  finish(ctx)
  redis.call('SET', base .. ':opened', text(ctx.us))
  return 'OPENED'
end

-- ARGV: by. A new epoch: whoever held the one before can no longer write. Returns it.
local function claim(keys, args)
  local base = keys[1]
  sound(base)
  local epoch = integer(redis.call('HGET', base .. ':state', 'epoch') or '0') + 1
  local ctx = begin(base, now_us())
  audit(ctx, 'EPOCH', text(epoch), args[1], '{}')
  finish(ctx)
  redis.call('HSET', base .. ':state', 'epoch', text(epoch))
  return epoch
end

-- ARGV: epoch, by. This server process may take orders for the account: somebody has reconciled it.
local function admit(keys, args)
  local base = keys[1]
  if fenced(base, args[1]) then
    return { 'STALE_EPOCH' }
  end
  if not is_admitted(base, args[1]) then
    sound(base)
    local ctx = begin(base, now_us())
    audit(ctx, 'ADMITTED', args[1], args[2], '{}')
    finish(ctx)
    admitted[base] = tonumber(args[1])
  end
  return { 'OK' }
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

-- Of the desk. ARGV: id, record, by, what the audit may show of it (JSON). Adds or replaces an API key.
local function put_key(keys, args)
  redis.call('HLEN', DESK .. ':api_keys')
  local ctx = begin(DESK, now_us())
  audit(ctx, 'KEY', args[1], args[3], args[4])
  finish(ctx)
  redis.call('HSET', DESK .. ':api_keys', args[1], args[2])
  return redis.status_reply('OK')
end

-- ARGV: last seq, file, sha256, by. Notes that entries up to `seq` are in an archive file.
local function archived(keys, args)
  local base, through = keys[1], integer(args[1])
  local ctx = begin(base, now_us())
  if through > figure(ctx.book, 'seq') or through < figure(ctx.book, 'archived') then
    return redis.error_reply('ERR cannot be archived through ' .. args[1])
  end
  put_value(ctx.book, 'archived', through)
  audit(ctx, 'ARCHIVED', args[1], args[4], { through_seq = args[1], file = args[2], sha256 = args[3] })
  finish(ctx)
  return figure(ctx.book, 'seq')
end

-- ARGV: id of an entry in the stream. Drops it and all before it; only what an archive holds. Returns how many.
local function trim_audit(keys, args)
  local key = keys[1] .. ':audit'
  local entry = redis.call('XRANGE', key, args[1], args[1])[1]
  if not entry then
    return 0
  end
  local fields, seq = entry[2], nil
  for i = 1, #fields, 2 do
    seq = fields[i] == 'seq' and integer(fields[i + 1]) or seq
  end
  if not seq or seq > integer(redis.call('HGET', keys[1] .. ':book', 'archived') or '0') then
    return redis.error_reply('ERR entry ' .. args[1] .. ' is in no archive')
  end
  return redis.call('XTRIM', key, 'MINID', args[1]) + redis.call('XDEL', key, args[1])
end

-- ---------------------------------------------------------------------------------------------------------------------
-- reading and proving

-- Everything about an account (and the desk) at one instant: flat {name, flat hash} pairs.
local function snapshot(keys)
  local base, result = keys[1], {}
  for _, name in ipairs({ 'state', 'limits', 'book', 'reference' }) do
    result[#result + 1] = name
    result[#result + 1] = redis.call('HGETALL', base .. ':' .. name)
  end
  for _, name in ipairs({ 'state', 'limits', 'book' }) do
    result[#result + 1] = 'desk_' .. name
    result[#result + 1] = redis.call('HGETALL', DESK .. ':' .. name)
  end
  result[#result + 1] = 'server'
  result[#result + 1] = { 'now_ms', text(math.floor(now_us() / 1000)), 'admitted', is_admitted(base, redis.call('HGET', base .. ':state', 'epoch')) and '1' or '0' }
  return result
end

local function plus(total, field, n)
  total[field] = (total[field] or 0) + n
end

-- Adds one open order's reservation to `total`; nil where its record holds none, false where nobody will send it.
local function add_reservation(total, base, id, queued)
  local o = hash(base .. ':order:' .. id)
  if not o.lots or TERMINAL[o.status] then
    return nil
  end
  local side, notional, lots = o.side == 'SELL' and 'sell_' or 'buy_', integer(o.reserved_notional), integer(o.reserved_lots)
  plus(total, 'reserved', integer(o.reserved_cash))
  for _, prefix in ipairs({ 'a|', 'p|' .. o.product .. '|', 's|' .. o.strategy .. '|', 'k|' .. o.by .. '|' }) do
    plus(total, prefix .. 'open_orders', 1)
    plus(total, prefix .. side .. 'notional', notional)
  end
  local group = group_now(base, o.product)
  if group then
    plus(total, 'g|' .. group .. '|' .. side .. 'notional', notional)
  end
  plus(total, 'p|' .. o.product .. '|' .. side .. 'lots', lots)
  plus(total, 'sp|' .. o.strategy .. '|' .. o.product .. '|' .. side .. 'lots', lots)
  return o.status ~= 'RESERVED' or queued[id] or false
end

-- Every open order's reservation summed afresh, in the book's field names, with how many ids in :open hold none
-- (broken) and how many RESERVED orders nobody will send (unqueued). Of the desk: the accounts' figures summed.
local function sums_of(base)
  local total, queued = { broken = 0, unqueued = 0 }, {}
  if base == DESK then
    for _, account in ipairs(redis.call('SMEMBERS', DESK .. ':accounts')) do
      local names = { 'open_orders', 'buy_notional', 'sell_notional', 'gross', 'value', 'pnl', 'equity' }
      for _, name in ipairs(names) do
        plus(total, name, integer(redis.call('HGET', DESK .. ':' .. account .. ':book', 'a|' .. name) or '0'))
      end
    end
    return total
  end
  for _, entry in ipairs(redis.call('XRANGE', base .. ':outbox', '-', '+')) do
    local fields = entry[2]
    for i = 1, #fields, 2 do
      queued[fields[i] == 'id' and fields[i + 1] or ''] = true
    end
  end
  for _, id in ipairs(redis.call('ZRANGE', base .. ':open', 0, -1)) do
    local read, safe = pcall(add_reservation, total, base, id, queued)
    if not read or safe == nil then
      plus(total, 'broken', 1)
    elseif not safe then
      plus(total, 'unqueued', 1)
    end
  end
  return total
end

local SUMMED = { open_orders = true, buy_notional = true, sell_notional = true, buy_lots = true, sell_lots = true }

-- How many counters of the book differ from what the open orders add up to.
count_differences = function(base)
  local total, book, differences = sums_of(base), hash(base .. ':book'), 0
  differences = total.broken + total.unqueued
  total.broken, total.unqueued = nil, nil
  for name, value in pairs(book) do
    local last = name:match('([^|]+)$')
    if (SUMMED[last] or name == 'reserved') and total[name] == nil then
      total[name] = 0
    end
  end
  for name, sum in pairs(total) do
    if tonumber(book[name] or '0') ~= sum then
      differences = differences + 1
    end
  end
  return differences
end

-- Proves the counters and halts what does not add up. Returns the number of differences.
local function prove(keys)
  local base = keys[1]
  local differences = count_differences(base)
  if differences > 0 then
    local ctx = begin(base, now_us())
    latch(ctx, base == DESK and 'global' or 'account', 'HALTED', 'INVARIANT', text(differences), '0',
      'the books do not add up')
    finish(ctx)
  end
  return differences
end

-- Returns {flat {field, sum, …} summed afresh; the book; the desk's book}, all of one instant.
local function open_sums(keys)
  local flat = {}
  for field, n in pairs(sums_of(keys[1])) do
    flat[#flat + 1] = field
    flat[#flat + 1] = text(n)
  end
  return { flat, redis.call('HGETALL', keys[1] .. ':book'), redis.call('HGETALL', DESK .. ':book') }
end

local function register(name, callback, flags)
  redis.register_function { function_name = name, callback = callback, flags = flags }
end

-- allow-oom: what ends risk, or is bounded in number, must work with memory full. Only new orders wait.
local ALLOW_OOM, NO_WRITES = { 'allow-oom' }, { 'no-writes' }
register('tt_reserve', reserve, {})
register('tt_check', check, NO_WRITES)
register('tt_amend', amend, {})
register('tt_amended', amended, ALLOW_OOM)
register('tt_amend_refused', amend_refused, ALLOW_OOM)
register('tt_adopt', adopt, ALLOW_OOM)
register('tt_recon_break', recon_break, ALLOW_OOM)
register('tt_emptied', emptied, ALLOW_OOM)
register('tt_venue_budget', venue_budget, ALLOW_OOM)
register('tt_bind_environment', bind_environment, ALLOW_OOM)
register('tt_arm', arm, ALLOW_OOM)
register('tt_propose_adjust', propose_adjust, ALLOW_OOM)
register('tt_mark_sent', mark_sent, ALLOW_OOM)
register('tt_ack', ack, ALLOW_OOM)
register('tt_fill', fill, ALLOW_OOM)
register('tt_release', release, ALLOW_OOM)
register('tt_request_cancel', request_cancel, ALLOW_OOM)
register('tt_tighten', tighten, ALLOW_OOM)
register('tt_set_limits', set_limits, ALLOW_OOM)
register('tt_propose_resume', propose_resume, ALLOW_OOM)
register('tt_propose_override', propose_override, ALLOW_OOM)
register('tt_approve', approve, ALLOW_OOM)
register('tt_refuse', refuse, ALLOW_OOM)
register('tt_set_reference', set_reference, ALLOW_OOM)
register('tt_watch', watch, ALLOW_OOM)
register('tt_venue_errors', venue_errors, ALLOW_OOM)
register('tt_open_account', open_account, ALLOW_OOM)
register('tt_claim', claim, ALLOW_OOM)
register('tt_admit', admit, ALLOW_OOM)
register('tt_open_outbox', open_outbox, ALLOW_OOM)
register('tt_finish_outbox', finish_outbox, ALLOW_OOM)
register('tt_put', put, ALLOW_OOM)
register('tt_put_key', put_key, ALLOW_OOM)
register('tt_archived', archived, ALLOW_OOM)
register('tt_trim_audit', trim_audit, ALLOW_OOM)
register('tt_prove', prove, ALLOW_OOM)
register('tt_snapshot', snapshot, NO_WRITES)
register('tt_open_sums', open_sums, NO_WRITES)
