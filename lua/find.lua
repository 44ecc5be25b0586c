-- find: did a write happen whose reply was lost? The record knows it while no later write has passed over it, and
-- the events know it as far back as they reach.
--
-- KEYS[1]  record       <prefix>:{<p>}:status:<id>
-- KEYS[2]  events       <prefix>:{<p>}:events
--
-- ARGV[1]  request      the token of the write
-- ARGV[2]  floor        an event id from before the write was sent; 0-0 when there was no event yet
-- ARGV[3]  newest       where to look from: "+", or the cursor of a MORE reply
-- ARGV[4]  maxlen       about how many events the stream keeps
-- ARGV[5]  page         how many events to look at in one call
--
-- Reply
--   CURRENT <record>            it happened, and the record is still what it made
--   PASSED <event id> <event> <record>  it happened, this is its newest event, and the record has changed since
--   MORE <cursor>               not among the events looked at; go on from there
--   NONE                        it did not happen
--   TRIMMED                     events from after the floor are gone: it cannot be known
--   ROLLED_BACK                 the stream ends before the floor: the server lost data, it cannot be known

local record, events = KEYS[1], KEYS[2]
local request, floor, newest, maxlen, page = ARGV[1], ARGV[2], ARGV[3], tonumber(ARGV[4]), tonumber(ARGV[5])

local function later(a, b)
  local a_ms, a_seq = string.match(a, "(%d+)-(%d+)")
  local b_ms, b_seq = string.match(b, "(%d+)-(%d+)")
  if a_ms ~= b_ms then
    return tonumber(a_ms) > tonumber(b_ms)
  end
  return tonumber(a_seq) > tonumber(b_seq)
end

local function token_of(fields)
  for i = 1, #fields, 2 do
    if fields[i] == "request" then
      return fields[i + 1]
    end
  end
end

local mark = redis.call("HMGET", record, "request", "revision")
if mark[1] == request then
  return { "CURRENT", redis.call("HGETALL", record) }
end

local last = redis.call("XREVRANGE", events, "+", "-", "COUNT", 1)[1]
if floor ~= "0-0" and not (last and not later(floor, last[1])) then
  return { "ROLLED_BACK" }
end
if mark[2] and string.find(mark[2], "^%d+-%d+$") and not later(mark[2], floor) then
  return { "NONE" } -- nothing has changed it since
end
local entries = redis.call("XREVRANGE", events, newest, "(" .. floor, "COUNT", page)
for _, entry in ipairs(entries) do
  if token_of(entry[2]) == request then
    return { "PASSED", entry[1], entry[2], redis.call("HGETALL", record) }
  end
end
if #entries == page then
  return { "MORE", "(" .. entries[page][1] }
end

local first = redis.call("XRANGE", events, "-", "+", "COUNT", 1)[1]
local complete = not first or not later(first[1], floor)
if floor == "0-0" then
  -- An approximate trim never goes below maxlen, so a shorter stream was never trimmed.
  complete = redis.call("XLEN", events) < maxlen
end
return { complete and "NONE" or "TRIMMED" }
