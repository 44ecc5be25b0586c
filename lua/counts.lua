-- counts: how many sandboxes there are in each state and on each node. No record is read.
--
-- KEYS[1-4]  indexes    <prefix>:{<p>}:state:<STATE>, for INIT, READY, NOTREADY, UNKNOWN
-- KEYS[5]    all_nodes  <prefix>:{<p>}:nodes
--
-- ARGV[1]  nodes        <prefix>:{<p>}:node: (a node completes the key)
--
-- Reply
--   OK <states> <nodes>         the states, each with its number, and the nodes, each with its number

local all_nodes = KEYS[5]
local indexes = { INIT = KEYS[1], READY = KEYS[2], NOTREADY = KEYS[3], UNKNOWN = KEYS[4] }
local nodes = ARGV[1]

local states, counted = {}, {}
for state, index in pairs(indexes) do
  states[#states + 1] = state
  states[#states + 1] = redis.call("ZCARD", index)
end
for _, node in ipairs(redis.call("ZRANGE", all_nodes, 0, -1)) do
  counted[#counted + 1] = node
  counted[#counted + 1] = redis.call("ZCARD", nodes .. node)
end
return { "OK", states, counted }
