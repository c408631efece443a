-- Runs units once: each has a marker, and a unit whose marker is there is not run again.
--
-- A marker is a field of a hash, its bucket. A unit has two buckets, that of the hour in which its task was accepted
-- and that of the hour before, because an id that is repeated may have been accepted first in either. The value 1
-- says that the unit ran; 2 that it ran in part, and that somebody must look at it.
--
-- The marker is written before the unit runs. A target that takes no writes refuses it, and then nothing has run; once
-- it is written, the server's own state stops nothing of this script any more.
--
-- KEYS      for each unit its bucket, and the one of the hour before
-- ARGV[1]   how long a marker lives at least, in ms
-- ARGV[2..] for each unit: the marker's field, the number of its commands, and each command as the number of its
--           words and the words
--
-- Answers an entry for each unit:
--   1  it ran          0  it had run before          2  it had run in part before
--   {'marker', text}   its marker was refused, and nothing of it ran
--   {'refused', ...}   nothing of it ran; the texts of the refusals
--   {'partial', ...}   some of it ran: for each command 1 or the text of its refusal
--
-- A task's script is put in the place of `body`. Then there is one unit, without commands; the script's keys and
-- arguments follow KEYS and the marker's field, and `partial` has the text of its error.
local body = nil

-- commands.lua

local HOUR = 3600000

local function seen(bucket, field)
  local value = call('HGET', bucket, field)
  if not value then return nil end
  if refusal(value) then return {'marker', value.err} end
  return value == '2' and 2 or 0
end

-- Writes the marker. Nothing is returned if it was not there before.
local function mark(bucket, field, keep)
  local written = call('HSETNX', bucket, field, 1)
  if written == 0 then return seen(bucket, field) end
  if written ~= 1 then return {'marker', written.err} end
  -- Tasks may run long after the hour of their acceptance: what counts is when the bucket was last written to.
  local left = call('PTTL', bucket)
  if type(left) == 'number' and left < keep then left = call('PEXPIRE', bucket, keep + HOUR) end
  if type(left) ~= 'number' then
    redis.call('HDEL', bucket, field)
    return {'marker', left.err}
  end
end

local function once(bucket, before, field, keep, run)
  local known = seen(before, field) or mark(bucket, field, keep)
  if known then return known end
  local failure = run(body)
  if not failure then return 1 end
  if failure[1] == 'refused' then
    redis.call('HDEL', bucket, field)
  else
    redis.call('HSET', bucket, field, 2)
  end
  return failure
end

local keep = tonumber(ARGV[1])

if body then
  local bucket, before, field = KEYS[1], KEYS[2], ARGV[2]
  for _ = 1, 2 do
    table.remove(KEYS, 1)
    table.remove(ARGV, 1)
  end
  return {once(bucket, before, field, keep, run_body)}
end

local answer = {}
at = 2
for unit = 1, #KEYS / 2 do
  local field = ARGV[at]
  count = tonumber(ARGV[at + 1])
  at = at + 2
  local first = at
  answer[unit] = once(KEYS[2 * unit - 1], KEYS[2 * unit], field, keep, run_commands)
  if at == first then skip_commands() end
end
return answer
