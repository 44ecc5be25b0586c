-- counts: how many sandboxes there are in each state and on each node. No record is read.
--
-- KEYS[1-4]  indexes    <prefix>:{<p>}:state:<STATE>, for INIT, READY, NOTREADY, UNKNOWN
-- KEYS[5]    all_nodes  <prefix>:{<p>}:nodes
--
-- Reply
--   OK <states> <nodes>         the states, each with its number, and the nodes, each with its number

local all_nodes = KEYS[5]
local indexes = { INIT = KEYS[1], READY = KEYS[2], NOTREADY = KEYS[3], UNKNOWN = KEYS[4] }

local states = {}
for state, index in pairs(indexes) do
  states[#states + 1] = state
  states[#states + 1] = redis.call("ZCARD", index)
end
return { "OK", states, redis.call("ZRANGE", all_nodes, 0, -1, "WITHSCORES") }
