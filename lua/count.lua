-- count: how many sandboxes on a node are in a state. No record is read; it costs what the smaller index costs.
--
-- KEYS[1]  index        <prefix>:{<p>}:state:<STATE>
-- KEYS[2]  on_node      <prefix>:{<p>}:node:<node>
--
-- ARGV[1]  after        where to go on: "-", or what the reply before said
-- ARGV[2]  page         how many ids to look at in one call
--
-- Reply
--   OK <number> <after>         how many of those looked at, and where to go on, or "" at the end

local index, on_node = KEYS[1], KEYS[2]
local after, page = ARGV[1], tonumber(ARGV[2])

local small, large = index, on_node
if redis.call("ZCARD", small) > redis.call("ZCARD", large) then
  small, large = large, small
end
local ids, number = redis.call("ZRANGE", small, after, "+", "BYLEX", "LIMIT", 0, page), 0
for _, id in ipairs(ids) do
  if redis.call("ZSCORE", large, id) then
    number = number + 1
  end
end
return { "OK", number, #ids == page and "(" .. ids[page] or "" }
