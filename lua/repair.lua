-- repair: put a sandbox into exactly those indexes that its record belongs in, and into the set of nodes exactly those
-- of its nodes that have sandboxes, with how many. The record and the events stay as they are; done twice it is as good
-- as once.
--
-- KEYS[1]    record     <prefix>:{<p>}:status:<id>
-- KEYS[2-5]  indexes    <prefix>:{<p>}:state:<STATE>, for INIT, READY, NOTREADY, UNKNOWN
-- KEYS[6]    all_nodes  <prefix>:{<p>}:nodes
--
-- ARGV[1]  kind         "sandbox"; "node" for the set of nodes alone
-- ARGV[2]  id           the sandbox, or ""
-- ARGV[3]  nodes        <prefix>:{<p>}:node: (a node completes the key)
-- ARGV[4]  ... others   nodes whose indexes may have it without reason
--
-- Reply
--   OK <added> <removed>        index keys and what was added to them or given its score, in turns; the same of removals
--
-- @include lib/status
-- @include lib/change

local record, all_nodes = KEYS[1], KEYS[6]
local indexes = { INIT = KEYS[2], READY = KEYS[3], NOTREADY = KEYS[4], UNKNOWN = KEYS[5] }
local kind, id, nodes = ARGV[1], ARGV[2], ARGV[3]
local others = { unpack(ARGV, 4) }

local status = kind == "sandbox" and read(record)
local own = status and status.node or ""
if own ~= "" then
  others[#others + 1] = own
end

local places = {}
for state, index in pairs(indexes) do
  if kind == "sandbox" then
    places[#places + 1] = { index = index, belongs = status and status.state == state }
  end
end
for _, node in ipairs(others) do
  if kind == "sandbox" then
    places[#places + 1] = { index = nodes .. node, belongs = node == own }
  end
end

-- As in lib/change: nothing is written where a later write would fail.
for _, place in ipairs(places) do
  redis.call("ZCARD", place.index)
  permit("ZADD", place.index, 0, id)
  permit("ZREM", place.index, id)
end
for _, node in ipairs(others) do
  redis.call("ZCARD", nodes .. node)
end
redis.call("ZCARD", all_nodes)
permit("ZADD", all_nodes, 0, id)
permit("ZREM", all_nodes, id)

local added, removed = {}, {}
local function settle(index, member, right)
  local score = redis.call("ZSCORE", index, member)
  local changed
  if right and not (score and tonumber(score) == right) then
    redis.call("ZADD", index, right, member)
    changed = added
  elseif score and not right then
    redis.call("ZREM", index, member)
    changed = removed
  end
  if changed then
    changed[#changed + 1], changed[#changed + 2] = index, member
  end
end
for _, place in ipairs(places) do
  settle(place.index, id, place.belongs and 0)
end
for _, node in ipairs(others) do
  local number = redis.call("ZCARD", nodes .. node)
  settle(all_nodes, node, number > 0 and number)
end
return { "OK", added, removed }
