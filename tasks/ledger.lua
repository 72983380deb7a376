-- The ledger of one brick: which batches are open, and which units of each are not done yet.
--
-- KEYS[1]  prefix of all keys, "seamark:{<session id>}:"
-- ARGV[1]  operation: "begin" | "fence" | "open" | "settle" | "forget" | "tell"
-- ARGV[2]  fence: the epoch of the caller; refused (-1) unless it is the current one
-- ARGV[3]  batch number
-- ARGV[4]  now, milliseconds
-- begin:   the fence is ARGV[2] from now on; whoever asks has deleted what was there before.
-- fence:   status is the epoch that is served, 0 when none is. ARGV[2] does not matter.
-- open:    ARGV[5] manifest (JSON); then pairs unit, payload.     Refused (-2) unless batch = opened + 1.
-- settle:  ARGV[5] unit that is done, or "" (only look whether the front can move);
--          ARGV[6] boot id of the secondary that did it, or "";
--          ARGV[7] failures (JSON list) or ""; ARGV[8] resolved (JSON list) or "";
--          ARGV[9] the token of the payload that was done, or "" (any);
--          then pairs unit, payload that this unit discovered.    0 when the unit was not there any more,
--          or is another one of the same name by now.
-- forget:  drops what is kept of every batch up to ARGV[3] (never past the front).
-- tell:    ARGV[5] terms (JSON), what workers on other hosts are told.
-- Returns  {status, front, opened}: status 1 = done.
--
-- Keys below the prefix:
--   fence          current epoch
--   ledger         hash: opened (last batch opened), front (all up to it are done), forgotten,
--                  sent (the last changelog position that any batch of this epoch holds records of),
--                  history (of Redis' data, when this epoch began)
--   batch:<n>      hash: manifest, moved (ms of the last progress), worked (1: a unit was done),
--                  boot, rebooted (1: the secondary restarted), left (units not done), bad (lists of failures)
--   units:<n>      hash: unit -> token of 8 characters, and payload, of those not done
--   failures:<n>, resolved:<n>   lists of JSON lists, read when the front passes the batch
--   claims         hash: unit -> ms of the last sign of life of the task doing it
--   terms          what workers on other hosts are told (tasks/terms.py)
local k = KEYS[1]
local op, fence, batch, now = ARGV[1], ARGV[2], tonumber(ARGV[3]), ARGV[4]
local ledger = k .. 'ledger'
local opened = tonumber(redis.call('HGET', ledger, 'opened') or '0')
local front = tonumber(redis.call('HGET', ledger, 'front') or '0')

-- A Redis that restarted from its disk, or took over from another, may have forgotten the last that was written to it:
-- then units are there again that are done, and numbers are given out twice. Its replication id tells histories apart.
local history = string.match(redis.call('INFO', 'replication'), 'master_replid:(%w+)') or ''
if op == 'begin' then
  redis.call('SET', k .. 'fence', fence)
  redis.call('HSET', ledger, 'history', history)
end
local served = redis.call('HGET', ledger, 'history') == history and redis.call('GET', k .. 'fence')
if op == 'fence' then return {tonumber(served or '0'), front, opened} end
if served ~= fence then return {-1, front, opened} end

local status = 1
if op == 'open' then
  if batch ~= opened + 1 then return {-2, front, opened} end
  redis.call('HSET', k .. 'batch:' .. batch, 'manifest', ARGV[5], 'moved', now, 'left', (#ARGV - 5) / 2, 'bad', 0)
  for i = 6, #ARGV, 2 do redis.call('HSET', k .. 'units:' .. batch, ARGV[i], ARGV[i + 1]) end
  redis.call('HSET', ledger, 'opened', batch)
  local sent = cjson.decode(ARGV[5])['sent']
  if type(sent) == 'number' then redis.call('HSET', ledger, 'sent', sent) end
  opened = batch
elseif op == 'settle' then
  local unit = ARGV[5]
  if unit ~= '' then
    local units = k .. 'units:' .. batch
    local payload = redis.call('HGET', units, unit)
    if not payload or (ARGV[9] ~= '' and string.sub(payload, 1, 8) ~= ARGV[9]) then
      status = 0
    else
      local key = k .. 'batch:' .. batch
      redis.call('HDEL', units, unit)
      redis.call('HDEL', k .. 'claims', unit)
      local more = -1
      for i = 10, #ARGV, 2 do more = more + redis.call('HSET', units, ARGV[i], ARGV[i + 1]) end
      redis.call('HINCRBY', key, 'left', more)
      if ARGV[7] ~= '' then
        redis.call('RPUSH', k .. 'failures:' .. batch, ARGV[7])
        redis.call('HINCRBY', key, 'bad', 1)
      end
      if ARGV[8] ~= '' then redis.call('RPUSH', k .. 'resolved:' .. batch, ARGV[8]) end
      redis.call('HSET', key, 'moved', now, 'worked', '1')
      if ARGV[6] ~= '' then
        local boot = redis.call('HGET', key, 'boot')
        if not boot then redis.call('HSET', key, 'boot', ARGV[6])
        elseif boot ~= ARGV[6] then redis.call('HSET', key, 'rebooted', '1') end
      end
    end
  end
elseif op == 'tell' then
  redis.call('SET', k .. 'terms', ARGV[5])
elseif op == 'forget' then
  local from = tonumber(redis.call('HGET', ledger, 'forgotten') or '0')
  for n = from + 1, math.min(batch, front) do
    redis.call('DEL', k .. 'batch:' .. n, k .. 'units:' .. n, k .. 'failures:' .. n, k .. 'resolved:' .. n)
    redis.call('HSET', ledger, 'forgotten', n)
  end
end

while front < opened do
  local n = front + 1
  local left, bad = unpack(redis.call('HMGET', k .. 'batch:' .. n, 'left', 'bad'))
  local units = redis.call('HLEN', k .. 'units:' .. n)
  if tonumber(left) ~= units or tonumber(bad) ~= redis.call('LLEN', k .. 'failures:' .. n) then
    -- Keys were lost, and not all of them: a Redis that evicts. Nobody is served until a new epoch begins.
    redis.call('DEL', k .. 'fence')
    return {-1, front, opened}
  end
  if units > 0 then break end
  front = n
end
redis.call('HSET', ledger, 'front', front)
return {status, front, opened}
