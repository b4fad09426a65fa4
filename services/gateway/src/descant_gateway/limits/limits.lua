-- Every limit on a request's path, checked together and then changed all together or not at all.
-- Valkey's clock, so that replicas agree on the time; integers for whatever is not a rate.
--
-- KEYS[1]   the reservation of one request: it exists from reserve to settle
-- KEYS[2]   the organization's leases: a sorted set of reservations by the time they lapse
-- KEYS[3..] the counters, one for each limit (renew: reservations)
-- ARGV[1]   "reserve", "settle", "book", "peek", "renew" or "correct"
-- ARGV[2]   seconds that a lease lasts
-- ARGV[3]   msgpack: for each counter {period, capacity, which amount, is it only counted (shadow)}
-- ARGV[4..] requests, tokens, micro-dollars: to reserve, or truly used
--
-- A period is "minute" (a token bucket, refilled evenly), "day", "week" or "month" (of the calendar in UTC: what is reserved
-- and what is settled in it), or "open" (requests that run now: what is reserved).
--
-- reserve: takes every amount if all of them fit, else none. A reservation that exists already is granted again, for nothing.
-- settle:  puts what was used in the place of what was reserved, fitting or not: what is too much is a debt. Without its
--          reservation it does nothing, so settling twice is settling once.
-- book:    takes what was used by a request that was never reserved here, once for each KEYS[1].
-- peek:    takes nothing.
-- renew:   lengthens the leases of reservations.
-- correct: adds to what was settled, as ARGV[7] says, msgpack: for each counter {its period's first day, the difference}.
--
-- A lease that lapses gives back what its reservation holds: its gateway has died. The reservation stays as a dead one, so that
-- a gateway that was only cut off can still settle it, or renew it and have it back.
--
-- Returns {1 or 0, the time, what each counter has left}, the numbers as text.

local DAY = 86400
local RESERVATION_MS = 3600 * 1000
local REAPED_AT_ONCE = 100
local KEPT_DAYS = { day = 2, week = 9, month = 33 }

local operation, lease_s = ARGV[1], tonumber(ARGV[2])
local time = redis.call('TIME')
local now = tonumber(time[1]) + tonumber(time[2]) / 1e6

local function whole(number)
  return string.format('%.0f', number)
end

-- The day of the month, from days since 1970: "days to civil" over eras of 400 years that begin in March.
local function day_of_month(days)
  local day_of_era = (days + 719468) % 146097
  local leap_days = math.floor(day_of_era / 1460) - math.floor(day_of_era / 36524) + math.floor(day_of_era / 146096)
  local year = math.floor((day_of_era - leap_days) / 365)
  local day_of_year = day_of_era - (365 * year + math.floor(year / 4) - math.floor(year / 100))
  local month = math.floor((5 * day_of_year + 2) / 153)
  return day_of_year - math.floor((153 * month + 2) / 5) + 1
end

-- The first day of the period that is now, in days since 1970. Weeks begin on Monday; that day was a Thursday.
local function first_day(period)
  local today = math.floor(now / DAY)
  if period == 'week' then
    return today - (today + 3) % 7
  elseif period == 'month' then
    return today - day_of_month(today) + 1
  end
  return today
end

-- Were the clock set back, a bucket filled ahead of it would stay as it is until then: it goes on from now.
local function load_bucket(counter)
  local stored = redis.call('HMGET', counter.key, 'level', 'at')
  counter.left = counter.capacity
  if stored[1] then
    local elapsed = now - tonumber(stored[2])
    if elapsed < 0 then
      elapsed = 0
      redis.call('HSET', counter.key, 'at', string.format('%.6f', now))
    end
    counter.left = math.min(counter.capacity, tonumber(stored[1]) + elapsed * counter.capacity / 60)
  end
end

-- A period never goes back: were the clock set back, what was counted ahead of it goes on counting.
local function load_period(counter)
  local stored = redis.call('HMGET', counter.key, 'first', 'reserved', 'settled')
  counter.first = counter.period == 'open' and 0 or first_day(counter.period)
  counter.reserved, counter.settled = 0, 0
  if stored[1] and tonumber(stored[1]) >= counter.first then
    counter.first = tonumber(stored[1])
    counter.reserved, counter.settled = tonumber(stored[2]), tonumber(stored[3])
  end
  counter.left = counter.capacity - counter.reserved - counter.settled
end

local function save(counter)
  if counter.period == 'minute' then
    redis.call('HSET', counter.key, 'level', string.format('%.6f', counter.left), 'at', string.format('%.6f', now))
    -- A full bucket and a missing one are the same: each key lives just until it would be full again.
    local full_in = counter.capacity > 0 and (counter.capacity - counter.left) * 60 / counter.capacity or 60
    redis.call('PEXPIRE', counter.key, whole(math.ceil(full_in * 1000) + 1000))
    return
  end
  counter.left = counter.capacity - counter.reserved - counter.settled
  redis.call('HSET', counter.key, 'first', counter.first, 'reserved', whole(counter.reserved), 'settled', whole(counter.settled))
  if counter.period == 'open' then
    redis.call('EXPIRE', counter.key, DAY)
  else
    redis.call('EXPIREAT', counter.key, (counter.first + KEPT_DAYS[counter.period]) * DAY)
  end
end

local function load_all()
  local counters, amounts = {}, { tonumber(ARGV[4]), tonumber(ARGV[5]), tonumber(ARGV[6]) }
  for i, limit in ipairs(cmsgpack.unpack(ARGV[3])) do
    local counter = { key = KEYS[i + 2], period = limit[1], capacity = limit[2], amount = amounts[limit[3]], is_shadow = limit[4] }
    if counter.period == 'minute' then
      load_bucket(counter)
    else
      load_period(counter)
    end
    counters[i] = counter
  end
  return counters
end

local function reply(granted, counters)
  local answer = { granted, string.format('%.6f', now) }
  for i, counter in ipairs(counters) do
    answer[i + 2] = string.format('%.6f', counter.left)
  end
  return answer
end

-- A stored reservation is "L" (its lease lives) or "D" (it lapsed), then {amounts, {counter key: {first day, amount}}}.

local function has_holds(holds)
  return next(holds) ~= nil
end

-- Gives back (sign -1) or takes again (sign 1) what a reservation holds, where its period still lasts.
local function move_holds(holds, sign)
  for key, hold in pairs(holds) do
    local stored = redis.call('HMGET', key, 'first', 'reserved')
    if stored[1] and tonumber(stored[1]) == hold[1] then
      redis.call('HSET', key, 'reserved', whole(math.max(0, tonumber(stored[2]) + sign * hold[2])))
    end
  end
end

local function reap(leases)
  for _, reservation in ipairs(redis.call('ZRANGEBYSCORE', leases, '-inf', now, 'LIMIT', 0, REAPED_AT_ONCE)) do
    local stored = redis.call('GET', reservation)
    if stored and string.sub(stored, 1, 1) == 'L' then
      move_holds(cmsgpack.unpack(string.sub(stored, 2))[2], -1)
      redis.call('SET', reservation, 'D' .. string.sub(stored, 2), 'PX', RESERVATION_MS)
    end
    redis.call('ZREM', leases, reservation)
  end
end

local function lease(leases, reservation)
  redis.call('ZADD', leases, string.format('%.6f', now + lease_s), reservation)
  redis.call('PEXPIRE', leases, RESERVATION_MS)
end

local function take_all(counters)
  local holds = {}
  for _, counter in ipairs(counters) do
    if counter.period == 'minute' then
      counter.left = counter.left - counter.amount
    else
      counter.reserved = counter.reserved + counter.amount
      holds[counter.key] = { counter.first, counter.amount }
    end
    save(counter)
  end
  local record = cmsgpack.pack({ { tonumber(ARGV[4]), tonumber(ARGV[5]), tonumber(ARGV[6]) }, holds })
  redis.call('SET', KEYS[1], 'L' .. record, 'PX', RESERVATION_MS)
  if has_holds(holds) then
    lease(KEYS[2], KEYS[1])
  end
end

local function reserve()
  reap(KEYS[2])
  local counters = load_all()
  if redis.call('EXISTS', KEYS[1]) == 1 then
    return reply(1, counters)
  end
  for _, counter in ipairs(counters) do
    if counter.left < counter.amount and not counter.is_shadow then
      return reply(0, counters)
    end
  end
  take_all(counters)
  return reply(1, counters)
end

local function settle_counter(counter, reserved, hold, is_live)
  if counter.period == 'minute' then
    counter.left = math.min(counter.capacity, counter.left + reserved - counter.amount)
  elseif hold and hold[1] == counter.first then
    if is_live then
      counter.reserved = math.max(0, counter.reserved - hold[2])
    end
    if counter.period ~= 'open' then
      counter.settled = counter.settled + counter.amount
    end
  else
    return -- its period is over
  end
  save(counter)
end

local function settle()
  local stored = redis.call('GET', KEYS[1])
  local counters = load_all()
  if not stored then
    return reply(0, counters)
  end
  redis.call('DEL', KEYS[1])
  local is_live, record = string.sub(stored, 1, 1) == 'L', cmsgpack.unpack(string.sub(stored, 2))
  if has_holds(record[2]) then
    redis.call('ZREM', KEYS[2], KEYS[1])
  end
  for i, limit in ipairs(cmsgpack.unpack(ARGV[3])) do
    settle_counter(counters[i], record[1][limit[3]], record[2][counters[i].key], is_live)
  end
  return reply(1, counters)
end

local function book()
  local counters = load_all()
  if not redis.call('SET', KEYS[1], 'B', 'NX', 'PX', RESERVATION_MS) then
    return reply(0, counters)
  end
  for _, counter in ipairs(counters) do
    settle_counter(counter, 0, { counter.first, 0 }, true)
  end
  return reply(1, counters)
end

local function renew()
  for i = 3, #KEYS do
    local stored = redis.call('GET', KEYS[i])
    if stored then
      if string.sub(stored, 1, 1) == 'D' then
        move_holds(cmsgpack.unpack(string.sub(stored, 2))[2], 1)
      end
      redis.call('SET', KEYS[i], 'L' .. string.sub(stored, 2), 'PX', RESERVATION_MS)
      lease(KEYS[2], KEYS[i])
    end
  end
  reap(KEYS[2])
  return reply(1, {})
end

local function correct()
  local counters = load_all()
  for i, correction in ipairs(cmsgpack.unpack(ARGV[7])) do
    if counters[i].first == correction[1] then
      counters[i].settled = math.max(0, counters[i].settled + correction[2])
      save(counters[i])
    end
  end
  return reply(1, counters)
end

if operation == 'reserve' then
  return reserve()
elseif operation == 'settle' then
  return settle()
elseif operation == 'book' then
  return book()
elseif operation == 'renew' then
  return renew()
elseif operation == 'correct' then
  return correct()
end
reap(KEYS[2])
return reply(1, load_all())
