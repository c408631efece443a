-- Writes to a key only if the write is newer than the last one that was made through this script.
--
-- Redrive runs the writes of tasks with a `version` through it. A service that runs its own writes of the same keys
-- through it too, with the same prefix, is never overwritten by an older one and never overwrites a newer one.
--
-- KEYS[1]   the key
-- KEYS[2]   its marker, PREFIXversion:{T}:KEY. PREFIX is the setting `redis.own_prefix`, T what a Cluster hashes of the
--           key: what stands between its braces, or else the whole key. If T has a closing brace: PREFIXversion::KEY
-- ARGV[1]   the version: a decimal number from 0 to 9223372036854775807 without leading zeros
-- ARGV[2]   an id of the write, without spaces: with the same version it is known to be the same write
-- ARGV[3]   how long the version is remembered after this write, in ms; the setting `version.marker_ttl`
-- ARGV[4..] the commands, each as the number of its words and the words
--
-- For example: EVALSHA digest 2 user:42 redrive:version:{user:42}:user:42 17 order-9 604800000 3 SET user:42 Ada
--
-- Answers:
--    1               it ran, and its version is remembered
--    0               the same write had run before
--    2               the same write had run before in part
--   -1               a newer write, or another one of this version, had run before; nothing was done
--   an error         the only command was refused, or the marker; nothing was done
--   {'refused', ...} all commands were refused, nothing was done; the texts of the refusals
--   {'partial', ...} some of it ran, and its version is remembered; for each command 1 or the text of its refusal
--
-- Redrive puts a task's script in the place of `body`. Then there are no commands: KEYS is the marker and the script's
-- keys, ARGV[4..] are the script's arguments, and `partial` has the text of its error.
local body = nil

-- commands.lua

-- Lua's numbers are exact up to 2^53 only, so versions are compared as text.
local function is_less(one, other)
  if #one ~= #other then return #one < #other end
  return one < other
end

local marker, run = KEYS[2], run_commands
local version, id, life = ARGV[1], ARGV[2], ARGV[3]
if version ~= '0' and not version:find('^[1-9]%d*$') then
  return redis.error_reply('ERR the version is not a decimal number without leading zeros')
end
if body then
  marker, run = table.remove(KEYS, 1), run_body
  for _ = 1, 3 do table.remove(ARGV, 1) end
else
  at = 4
  while at <= #ARGV do
    at, count = at + tonumber(ARGV[at]) + 1, count + 1
  end
  at = 4
end

local former = call('GET', marker)
if refusal(former) then return former end
if former then
  local last, by, rest = former:match('^(%d+) (%S*)(.*)$')
  if last == version and by == id then return rest == '' and 0 or 2 end
  if last and not is_less(last, version) then return -1 end
end

-- Before anything runs: a server that takes no writes refuses it.
local written = call('SET', marker, version .. ' ' .. id, 'PX', life)
if refusal(written) then return written end
local failure = run(body)
if not failure then return 1 end
if failure[1] == 'partial' then
  redis.call('SET', marker, version .. ' ' .. id .. ' partial', 'PX', life)
  return failure
end
if former then
  redis.call('SET', marker, former, 'PX', life)
else
  redis.call('DEL', marker)
end
if #failure == 2 then return redis.error_reply(failure[2]) end
return failure
