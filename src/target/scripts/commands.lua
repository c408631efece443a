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
