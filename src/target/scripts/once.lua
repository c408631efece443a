-- Runs units once: each has a marker, and a unit whose marker is there is not run again.
--
-- A marker is a field of a hash, its bucket. A unit has two buckets, that of the hour in which its task was accepted
-- and that of the hour before, because an id that is repeated may have been accepted first in either. The value 1
-- says that the unit ran; 2 that it ran in part, and that somebody must look at it.
--
-- The marker is written before the unit runs. A target that takes no writes refuses it, and then nothing has run; once
-- it is written, the server's own state stops nothing of this script any more.
--
-- KEYS      the bucket of each unit, then the one of the hour before of each
-- ARGV[1]   how many units there are
-- ARGV[2]   how long a marker lives at least, in ms
-- ARGV[3]   how long a bucket lives from when that would not be so, in ms
-- ARGV[4]   1 if all buckets that exist were certainly made so lately that it is so
-- ARGV[5..] for each unit: the marker's field, minus the number of its commands if it has not one, and each command as
--           the number of its words and the words
--
-- Answers an entry for each unit:
--   1  it ran          0  it had run before          2  it had run in part before
--   {'marker', text}   its marker was refused, and nothing of it ran
--   {'refused', ...}   nothing of it ran; the texts of the refusals
--   {'partial', ...}   some of it ran: for each command 1 or the text of its refusal
--
-- A task's script is put in the place of `body`. Then there is one unit, without commands; the script's keys follow
-- the two buckets, its arguments the marker's field, and `partial` has the text of its error.
local body = nil

-- commands.lua

local units, keep, life = tonumber(ARGV[1]), tonumber(ARGV[2]), ARGV[3]

-- One question for all buckets is much cheaper than one for each, and mostly none or all exist.
local none_before = call('EXISTS', unpack(KEYS, units + 1, 2 * units)) == 0
local all_made = ARGV[4] == '1' and call('EXISTS', unpack(KEYS, 1, units)) == units

local function seen(bucket, field)
  local value = call('HGET', bucket, field)
  if not value then return nil end
  if refusal(value) then return {'marker', value.err} end
  return value == '2' and 2 or 0
end

-- Removes the marker of what did not run. If that is refused, somebody must look at it: it would count as what ran.
local function unmark(bucket, field, failure)
  if refusal(call('HDEL', bucket, field)) then failure[1] = 'partial' end
  return failure
end

-- Writes the marker. Nothing is returned if it was not there before.
local function mark(bucket, field)
  local written = call('HSETNX', bucket, field, '1')
  if written == 0 then return seen(bucket, field) end
  if written ~= 1 then return {'marker', written.err} end
  if all_made then return nil end
  -- Tasks may run long after they were accepted: what counts is when their markers were written.
  local left = call('PTTL', bucket)
  if type(left) == 'number' and left < keep then left = call('PEXPIRE', bucket, life) end
  if type(left) ~= 'number' then return unmark(bucket, field, {'marker', left.err}) end
end

local function once(bucket, before, field, run)
  local known = not none_before and seen(before, field) or mark(bucket, field)
  if known then return known end
  local failure = run(body)
  if not failure then return 1 end
  if failure[1] == 'refused' then return unmark(bucket, field, failure) end
  call('HSET', bucket, field, '2')
  return failure
end

if body then
  local bucket, before, field = KEYS[1], KEYS[2], ARGV[5]
  for _ = 1, 2 do table.remove(KEYS, 1) end
  for _ = 1, 5 do table.remove(ARGV, 1) end
  return {once(bucket, before, field, run_body)}
end

local answer = {}
at = 5
for unit = 1, units do
  local field = ARGV[at]
  at, count = at + 1, -tonumber(ARGV[at + 1])
  if count < 0 then count = 1 else at = at + 1 end
  local first = at
  answer[unit] = once(KEYS[unit], KEYS[units + unit], field, run_commands)
  if at == first then skip_commands() end
end
return answer
