-- fail_start: a new sandbox could not be started and is gone.
--
-- KEYS[1]    record     <prefix>:{<p>}:status:<id>
-- KEYS[2]    events     <prefix>:{<p>}:events
-- KEYS[3-6]  indexes    <prefix>:{<p>}:state:<STATE>, for INIT, READY, NOTREADY, UNKNOWN
-- KEYS[7]    all_nodes  <prefix>:{<p>}:nodes
--
-- ARGV[1]  id           the sandbox
-- ARGV[2]  by           the agent that asks
-- ARGV[3]  request      the token of this write
-- ARGV[4]  maxlen       about how many events the stream keeps
-- ARGV[5]  nodes        <prefix>:{<p>}:node: (the node of the record completes the key)
--
-- Reply
--   OK 1                        it is gone
--   NOT_FOUND
--   TRANSITION <state>          the state that refuses
--
-- @include lib/states
-- @include lib/status
-- @include lib/change

local record, events, all_nodes = KEYS[1], KEYS[2], KEYS[7]
local indexes = { INIT = KEYS[3], READY = KEYS[4], NOTREADY = KEYS[5], UNKNOWN = KEYS[6] }
local id, by, request, maxlen = ARGV[1], ARGV[2], ARGV[3], ARGV[4]
local nodes = ARGV[5]

local status = read(record)
if not status then
  return { "NOT_FOUND" }
end
if not moves("fail_start", status.state) then
  return { "TRANSITION", status.state }
end
local on_node = probe(events, nodes .. status.node, all_nodes)

erase(record, events, indexes, all_nodes, nodes, on_node, maxlen, id, "fail_start", status, by, request)
return { "OK", "1" }
