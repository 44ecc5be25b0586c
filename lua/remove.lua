-- remove: the sandbox is cleaned up and gone; with `force` a running one is stopped first.
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
-- ARGV[6]  force        "1" or ""
--
-- Reply
--   OK 1                        it is gone now
--   OK 0                        it was gone before
--   TRANSITION <state>          the state that refuses
--
-- @include lib/states
-- @include lib/status
-- @include lib/change

local record, events, all_nodes = KEYS[1], KEYS[2], KEYS[7]
local indexes = { INIT = KEYS[3], READY = KEYS[4], NOTREADY = KEYS[5], UNKNOWN = KEYS[6] }
local id, by, request, maxlen = ARGV[1], ARGV[2], ARGV[3], ARGV[4]
local nodes, force = ARGV[5], ARGV[6]

local operation = force == "1" and "force_remove" or "remove"
local status = read(record)
if not status then
  return { "OK", "0" }
end
local after = moves(operation, status.state)
if not after then
  return { "TRANSITION", status.state }
end
local on_node = probe(events, nodes .. status.node, all_nodes)
permit("DEL", record)
permit("ZREM", nodes .. status.node, id)
permit("ZREM", all_nodes, id)
permit("ZADD", all_nodes, 0, id)

if after == "NOTREADY" then
  probe(events, indexes.NOTREADY)
  local before = status.state
  status.state, status.pid = "NOTREADY", "0"
  move(record, events, indexes, maxlen, id, "stop", before, status, by, request)
end
erase(record, events, indexes, all_nodes, nodes, on_node, maxlen, id, "remove", status, by, request)
return { "OK", "1" }
