-- The ledger of one brick: which batches are open, and which units of each are not done yet.
--
-- KEYS[1]  prefix of all keys, "seamark:{<session id>}:"
-- ARGV[1]  operation: "open" | "settle" | "forget"
-- ARGV[2]  fence: the epoch of the caller; refused (-1) unless it is the current one
-- ARGV[3]  batch number
-- ARGV[4]  now, milliseconds
-- open:    ARGV[5] manifest (JSON); then pairs unit, payload.     Refused (-2) unless batch = opened + 1.
-- settle:  ARGV[5] unit that is done, or "" (only look whether the front can move);
--          ARGV[6] boot id of the secondary that did it, or "";
--          ARGV[7] failures (JSON list) or ""; ARGV[8] resolved (JSON list) or "";
--          then pairs unit, payload that this unit discovered.    0 when the unit was not there any more.
-- forget:  drops what is kept of every batch up to ARGV[3] (never past the front).
-- Returns  {status, front, opened}: status 1 = done.
--
-- Keys below the prefix:
--   fence          current epoch
--   ledger         hash: opened (last batch opened), front (all up to it are done), forgotten,
--                  sent (the last changelog position that any batch of this epoch holds records of)
--   batch:<n>      hash: manifest, moved (ms of the last progress), worked (1: a unit was done),
--                  boot, rebooted (1: the secondary restarted)
--   units:<n>      hash: unit -> payload, those not done
--   failures:<n>, resolved:<n>   lists of JSON lists, read when the front passes the batch
--   claims         hash: unit -> ms of the last sign of life of the task doing it
local k = KEYS[1]
local op, fence, batch, now = ARGV[1], ARGV[2], tonumber(ARGV[3]), ARGV[4]
local ledger = k .. 'ledger'
local opened = tonumber(redis.call('HGET', ledger, 'opened') or '0')
local front = tonumber(redis.call('HGET', ledger, 'front') or '0')
if redis.call('GET', k .. 'fence') ~= fence then return {-1, front, opened} end

local status = 1
if op == 'open' then
  if batch ~= opened + 1 then return {-2, front, opened} end
  redis.call('HSET', k .. 'batch:' .. batch, 'manifest', ARGV[5], 'moved', now)
  for i = 6, #ARGV, 2 do redis.call('HSET', k .. 'units:' .. batch, ARGV[i], ARGV[i + 1]) end
  redis.call('HSET', ledger, 'opened', batch)
  local sent = cjson.decode(ARGV[5])['sent']
  if type(sent) == 'number' then redis.call('HSET', ledger, 'sent', sent) end
  opened = batch
elseif op == 'settle' then
  local unit = ARGV[5]
  if unit ~= '' then
    if redis.call('HDEL', k .. 'units:' .. batch, unit) == 0 then
      status = 0
    else
      redis.call('HDEL', k .. 'claims', unit)
      for i = 9, #ARGV, 2 do redis.call('HSET', k .. 'units:' .. batch, ARGV[i], ARGV[i + 1]) end
      if ARGV[7] ~= '' then redis.call('RPUSH', k .. 'failures:' .. batch, ARGV[7]) end
      if ARGV[8] ~= '' then redis.call('RPUSH', k .. 'resolved:' .. batch, ARGV[8]) end
      local key = k .. 'batch:' .. batch
      redis.call('HSET', key, 'moved', now, 'worked', '1')
      if ARGV[6] ~= '' then
        local boot = redis.call('HGET', key, 'boot')
        if not boot then redis.call('HSET', key, 'boot', ARGV[6])
        elseif boot ~= ARGV[6] then redis.call('HSET', key, 'rebooted', '1') end
      end
    end
  end
elseif op == 'forget' then
  local from = tonumber(redis.call('HGET', ledger, 'forgotten') or '0')
  for n = from + 1, math.min(batch, front) do
    redis.call('DEL', k .. 'batch:' .. n, k .. 'units:' .. n, k .. 'failures:' .. n, k .. 'resolved:' .. n)
    redis.call('HSET', ledger, 'forgotten', n)
  end
end

while front < opened and redis.call('HLEN', k .. 'units:' .. (front + 1)) == 0 do front = front + 1 end
redis.call('HSET', ledger, 'front', front)
return {status, front, opened}
