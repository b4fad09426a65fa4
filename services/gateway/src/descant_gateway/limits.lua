-- Token buckets, any number of them, changed all together or not at all. Valkey's clock, so replicas agree on the time.
--
-- KEYS[1]   the reservation of one request; it exists from reserve to settle
-- KEYS[2..] the buckets, one for each limit on the request's path
-- ARGV[1]   "reserve" or "settle"
-- ARGV[2]   the reservation's lifetime, in milliseconds
-- ARGV[3..] for each bucket: capacity, refill per second, amount
--
-- reserve: takes every amount if all of them fit, else none. A reservation that exists already is granted again, for nothing.
-- settle:  takes every amount (what was used beyond the reservation; less than nothing gives back), fitting or not: a bucket
--          below zero is a debt. Without its reservation it does nothing, so settling twice is settling once.
--
-- Returns {1 or 0, then what each bucket holds now, as text}.

local time = redis.call('TIME')
local now = tonumber(time[1]) + tonumber(time[2]) / 1e6
local buckets = {}
for i = 2, #KEYS do
  local at = 3 * i - 3
  local bucket = { key = KEYS[i], capacity = tonumber(ARGV[at]), refill = tonumber(ARGV[at + 1]), amount = tonumber(ARGV[at + 2]) }
  local stored = redis.call('HMGET', bucket.key, 'level', 'at')
  if stored[1] then
    local elapsed = math.max(0, now - tonumber(stored[2]))
    bucket.level = math.min(bucket.capacity, tonumber(stored[1]) + elapsed * bucket.refill)
  else
    bucket.level = bucket.capacity
  end
  buckets[#buckets + 1] = bucket
end

local function take_all()
  for _, bucket in ipairs(buckets) do
    bucket.level = math.min(bucket.capacity, bucket.level - bucket.amount)
    redis.call('HSET', bucket.key, 'level', bucket.level, 'at', string.format('%.6f', now))
    -- A full bucket and a missing one are the same: each key lives just until it would be full again.
    local full_in = (bucket.capacity - bucket.level) / bucket.refill
    redis.call('PEXPIRE', bucket.key, math.ceil(full_in * 1000) + 1000)
  end
end

local granted = 1
if ARGV[1] == 'settle' then
  granted = redis.call('DEL', KEYS[1])
  if granted == 1 then
    take_all()
  end
elseif redis.call('EXISTS', KEYS[1]) == 0 then
  for _, bucket in ipairs(buckets) do
    if bucket.level < bucket.amount then
      granted = 0
    end
  end
  if granted == 1 then
    redis.call('SET', KEYS[1], '1', 'PX', ARGV[2])
    take_all()
  end
end

local reply = { granted }
for i, bucket in ipairs(buckets) do
  reply[i + 1] = string.format('%.6f', bucket.level)
end
return reply
