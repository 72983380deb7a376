-- A limit of bytes a second that any number of processes share: each asks before it sends, and is told how long to wait.
-- The generic cell rate algorithm (ITU-T I.371): one number, the time at which all that was granted so far is sent.
--
-- KEYS[1]  the limit, "seamark:{<session id>}:bandwidth" or "seamark:fleet:bandwidth:spent": that time, microseconds
-- ARGV[1]  bytes that are to be sent
-- ARGV[2]  bytes a second
-- ARGV[3]  burst: seconds' worth that may be sent at once after a rest
-- Returns  microseconds to wait before sending.
local now = redis.call('TIME')
local at = tonumber(now[1]) * 1000000 + tonumber(now[2])
local burst = tonumber(ARGV[3]) * 1000000
local done = math.max(tonumber(redis.call('GET', KEYS[1]) or '0'), at - burst)
done = done + tonumber(ARGV[1]) * 1000000 / tonumber(ARGV[2])
redis.call('SET', KEYS[1], string.format('%.0f', done), 'EX', math.ceil(math.max(1, (done - at) / 1000000)) + 60)
return math.max(0, math.floor(done - at))
