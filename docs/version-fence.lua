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

-- Running commands that are given as words in ARGV, each as the number of its words and the words.

local call, type, tonumber, unpack = redis.pcall, type, tonumber, unpack
local KEYS, ARGV = KEYS, ARGV

-- What fits on Lua's stack at once is a little more.
local MOST_WORDS = 7000

-- Where the next command begins, and how many there are from there.
local at, count = 0, 0

-- The text of a refusal; nothing where there was none.
local function refusal(reply)
  return type(reply) == 'table' and reply.err
end

local function skip_commands()
  for _ = 1, count do at = at + tonumber(ARGV[at]) + 1 end
end

local function run_command()
  local first = at + 1
  at = first + tonumber(ARGV[at])
  if at - first > MOST_WORDS then
    return 'ERR wrong number of arguments: a command in a script has ' .. MOST_WORDS .. ' words at most'
  end
  local text = refusal(call(unpack(ARGV, first, at - 1)))
  -- What was asked for is there already.
  if text and text:find('^BUSYGROUP') then return nil end
  return text
end

-- Why the user may not run one of the commands, where the server says so beforehand (since 7.0).
local function forbidden()
  if not redis.acl_check_cmd then return nil end
  local word = at
  for _ = 1, count do
    local last = word + tonumber(ARGV[word])
    if last - word <= MOST_WORDS then
      local known, allowed = pcall(redis.acl_check_cmd, unpack(ARGV, word + 1, last))
      if not known then return 'ERR unknown command' end
      if not allowed then return 'NOPERM the user has no permissions to run one of the commands' end
    end
    word = last + 1
  end
end

-- Returns nothing if all ran; `{'refused', ...}` with the texts of the refusals if none did; else `{'partial', ...}`
-- with 1 or the text of its refusal for each.
local function run_commands()
  if count == 1 then
    local text = run_command()
    return text and {'refused', text}
  end
  local text = forbidden()
  if text then
    skip_commands()
    return {'refused', text}
  end
  local texts, results = {'refused'}, {'partial'}
  for _ = 1, count do
    text = run_command()
    results[#results + 1] = text or 1
    if text then texts[#texts + 1] = text end
  end
  if #texts == 1 then return nil end
  return #texts == #results and texts or results
end

-- The same for a script.
local function run_body(body)
  local ran, reply = pcall(body)
  local text = refusal(reply)
  if not ran then text = text or tostring(reply) end
  return text and {'partial', text}
end

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
