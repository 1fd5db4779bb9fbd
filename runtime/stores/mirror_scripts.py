"""The scripts that run in the server: each carries out a whole step, or says why not.

Common to Redis 7.0 and Valkey 8. The first line makes the server refuse a script before it has written anything where
memory is full or this is a replica. Every answer is one letter a session.

A session's hash holds its epoch and seq beside the documents, so one command reads a state that is consistent in itself.
Its time to live is pushed forward once a day and not at every update: that would be a tenth of the server's work.

Each session has a channel of its own. Without readers that costs the same as a message a batch to one channel a shard (both
about a tenth of the server's work); with 100 readers of a session each, 0.5 MB go out where there it would be 15 MB.
"""

import hashlib

from attrs import field, frozen

from ...actors.ports import MirrorAnswer

ANSWERS = {
    ord("o"): MirrorAnswer.OK,
    ord("d"): MirrorAnswer.DUP,
    ord("g"): MirrorAnswer.GAP,
    ord("f"): MirrorAnswer.FENCED,
    ord("x"): MirrorAnswer.FOREIGN,
}
STAGE_LOST = ord("s")
STAGE_TTL_S = 600


@frozen
class Script:
    body: bytes = field(repr=False)
    sha: bytes = field(init=False)

    @sha.default
    def _digest(self) -> bytes:
        return hashlib.sha1(self.body, usedforsecurity=False).hexdigest().encode()


# `find`: a session's epoch, seq, day and the first event that has to be in its stream, or nil; and whether something that is
# not ours stands in its place.
_PRELUDE = b"""#!lua
local function foreign(reply)
  if type(reply) ~= 'table' or not reply.err then return false end
  if string.find(reply.err, 'WRONGTYPE', 1, true) then return true end
  error(reply)
end
local function find(key)
  local head = redis.pcall('HMGET', key, '@epoch', '@seq', '@kept', '@first')
  if foreign(head) then return nil, true end
  if head[1] then return head, false end
  local stream = redis.call('TYPE', key .. ':events').ok
  return nil, redis.call('EXISTS', key) == 1 or (stream ~= 'none' and stream ~= 'stream')
end
local function removed(key)
  local epoch = redis.pcall('HGET', key .. ':gone', 'epoch')
  if foreign(epoch) then return nil, true end
  return epoch and tonumber(epoch), false
end
"""

# KEYS: a session's hash each.
# ARGV: time to live in seconds; then for each: kind (i: increment, w: whole, s: whole and staged; W, S: by force), epoch, first seq, last
# seq, how many arguments are events, fields with values, and names of removed documents; then these. Where staged, the
# last three are the token and how many documents and events were staged.
APPLY = Script(
    _PRELUDE
    + b"""
local UNPACK_MAX = 4000
local answers, at, ttl = {}, 2, ARGV[1]
local today = string.format('%d', math.floor(tonumber(redis.call('TIME')[1]) / 86400))

-- The answer where the stream holds less than it has to, or is none. With news it is looked at for every 64th event: it costs a
-- tenth of a commit.
local function lacks(key, head, seq, first, last)
  local from = tonumber(head[4])
  if not from or (seq < last and math.floor(last / 64) == math.floor((first - 1) / 64)) then return nil end
  local held = redis.pcall('XLEN', key .. ':events')
  if foreign(held) then return 'x' end
  return held ~= seq - from + 1 and 'g' or nil
end

local function judge(key, kind, forced, epoch, first, last)
  local head, taken = find(key)
  if taken then return 'x' end
  if not head then
    local epoch_gone, taken_gone = removed(key)
    if taken_gone then return 'x' end
    if epoch_gone and epoch < epoch_gone and not forced then return 'f' end
    if kind == 'i' and first ~= 1 then return 'g' end
    if epoch_gone then redis.call('UNLINK', key .. ':gone') end
    return 'o', nil
  end
  -- Whoever changed these may have left no number.
  local its, seq = tonumber(head[1]) or 0, tonumber(head[2]) or 0
  if epoch < its and not forced then return 'f' end
  if kind == 'i' then
    if epoch == its and seq == last then return lacks(key, head, seq, first, last) or 'd' end
    if first ~= seq + 1 then return 'g' end
    local why = lacks(key, head, seq, first, last)
    if why then return why end
  else
    local stream = redis.call('TYPE', key .. ':events').ok
    if stream ~= 'none' and stream ~= 'stream' then return 'x' end
  end
  return 'o', head
end

local function replace(key, stream, kind, from)
  if kind == 's' then
    local stage, documents, events = key .. ':stage:' .. ARGV[from], tonumber(ARGV[from + 1]), tonumber(ARGV[from + 2])
    if redis.call('HLEN', stage) ~= documents or redis.call('XLEN', stage .. ':events') ~= events then return 's' end
    redis.call('UNLINK', key, stream)
    if documents > 0 then redis.call('RENAME', stage, key) end
    if events > 0 then redis.call('RENAME', stage .. ':events', stream) end
  else
    redis.call('UNLINK', key, stream)
  end
  return 'o'
end

for i, key in ipairs(KEYS) do
  local kind, epoch, last = string.lower(ARGV[at]), tonumber(ARGV[at + 1]), tonumber(ARGV[at + 3])
  local count, stream = tonumber(ARGV[at + 4]), key .. ':events'
  local events = at + 7
  local fields = events + count
  local gone = fields + ARGV[at + 5]
  local next_at = gone + ARGV[at + 6]
  local answer, head = judge(key, kind, kind ~= ARGV[at], epoch, tonumber(ARGV[at + 2]), last)
  if answer == 'o' and kind ~= 'i' then
    answer, head = replace(key, stream, kind, gone), nil
  end
  if answer == 'o' then
    for n = 0, count - 1 do
      local added = redis.pcall('XADD', stream, string.format('%d-0', last - count + 1 + n), 'e', ARGV[events + n])
      if type(added) == 'table' and added.err then
        -- Entries beyond the session's seq: another's, or left from before the hash was lost. Sent whole, it is made anew.
        if string.find(added.err, 'equal or smaller', 1, true) then answer = 'g' else answer = 'x' foreign(added) end
        break
      end
    end
  end
  if answer == 'o' then
    local upto = math.min(gone, fields + UNPACK_MAX)
    redis.call('HSET', key, '@epoch', ARGV[at + 1], '@seq', ARGV[at + 3], unpack(ARGV, fields, upto - 1))
    for from = upto, gone - 1, UNPACK_MAX do
      redis.call('HSET', key, unpack(ARGV, from, math.min(gone, from + UNPACK_MAX) - 1))
    end
    if kind == 'i' then
      for from = gone, next_at - 1, UNPACK_MAX do
        redis.call('HDEL', key, unpack(ARGV, from, math.min(next_at, from + UNPACK_MAX) - 1))
      end
    end
    if kind ~= 'i' or not head then
      redis.call('HSET', key, '@first', string.format('%d', last + 1 - (kind == 's' and tonumber(ARGV[gone + 2]) or count)))
    end
    if not head or head[3] ~= today then
      redis.call('EXPIRE', key, ttl)
      -- Where there is no stream yet, it has to be given its time once it is there.
      if redis.call('EXPIRE', stream, ttl) == 1 then
        redis.call('HSET', key, '@kept', today)
      else
        redis.call('HDEL', key, '@kept')
      end
    end
    redis.call('SPUBLISH', key .. ':live', ARGV[at + 1] .. ' ' .. ARGV[at + 3])
  end
  answers[i] = answer
  at = next_at
end
return table.concat(answers)
"""
)

# KEYS: a session's hash.  ARGV: token, seconds to live, the first event's seq, how many are events; these; fields with values.
STAGE = Script(
    b"""#!lua
local stage, ttl, first, count = KEYS[1] .. ':stage:' .. ARGV[1], ARGV[2], tonumber(ARGV[3]), tonumber(ARGV[4])
for n = 0, count - 1 do
  local added = redis.pcall('XADD', stage .. ':events', string.format('%d-0', first + n), 'e', ARGV[5 + n])
  -- A piece may be sent again, and then its events are there.
  if type(added) == 'table' and added.err and not string.find(added.err, 'equal or smaller', 1, true) then error(added) end
end
for from = 5 + count, #ARGV, 4000 do
  redis.call('HSET', stage, unpack(ARGV, from, math.min(from + 3999, #ARGV)))
end
redis.call('EXPIRE', stage, ttl)
redis.call('EXPIRE', stage .. ':events', ttl)
return 'o'
"""
)

# KEYS: a session's hash.  ARGV: epoch, and the seq after the last one that goes.
TRIM = Script(
    _PRELUDE
    + b"""
local key, stream = KEYS[1], KEYS[1] .. ':events'
local head, taken = find(key)
if taken then return 'x' end
if not head then return 'o' end
if tonumber(ARGV[1]) < (tonumber(head[1]) or 0) then return 'f' end
if foreign(redis.pcall('XTRIM', stream, 'MINID', ARGV[2])) then return 'x' end
if redis.call('XLEN', stream) == 0 then
  redis.call('UNLINK', stream)
  redis.call('HDEL', key, '@kept')
end
local first = math.min(tonumber(ARGV[2]), (tonumber(head[2]) or 0) + 1)
if first > (tonumber(head[4]) or 0) then redis.call('HSET', key, '@first', string.format('%d', first)) end
return 'o'
"""
)

# KEYS: a session's hash.  ARGV: epoch, tier, seconds for which it is said where the session went.
REMOVE = Script(
    _PRELUDE
    + b"""
local key, gone, epoch = KEYS[1], KEYS[1] .. ':gone', tonumber(ARGV[1])
local head, taken = find(key)
local epoch_gone, taken_gone = removed(key)
if taken or taken_gone then return 'x' end
if head and epoch < (tonumber(head[1]) or 0) then return 'f' end
if not head and epoch_gone and epoch < epoch_gone then return 'f' end
if not head and not epoch_gone then return 'o' end
redis.call('UNLINK', key, key .. ':events')
redis.call('HSET', gone, 'epoch', ARGV[1], 'tier', ARGV[2])
if head then redis.call('HSET', gone, 'seq', head[2]) end
redis.call('EXPIRE', gone, ARGV[3])
redis.call('SPUBLISH', key .. ':live', ARGV[1] .. ' gone')
return 'o'
"""
)

# KEYS: the namespace's owner.  ARGV: owner, epoch, seconds that the claim lasts, time to live in seconds.
CLAIM = Script(
    _PRELUDE
    + b"""
local key, epoch = KEYS[1], tonumber(ARGV[2])
local held = redis.pcall('HMGET', key, 'owner', 'epoch', 'until')
if foreign(held) or (not held[1] and redis.call('EXISTS', key) == 1) then return 'x' end
local now = tonumber(redis.call('TIME')[1])
local answer = 'g'
if held[1] == ARGV[1] then
  if epoch < tonumber(held[2]) then return 'f' end
  if epoch == tonumber(held[2]) then answer = 'o' end
elseif held[1] and (now < tonumber(held[3]) or epoch <= tonumber(held[2])) then
  return 'x' .. held[1]
end
redis.call('HSET', key, 'owner', ARGV[1], 'epoch', ARGV[2], 'until', string.format('%d', now + ARGV[3]))
redis.call('EXPIRE', key, ARGV[4])
return answer
"""
)

SCRIPTS = (APPLY, STAGE, TRIM, REMOVE, CLAIM)
