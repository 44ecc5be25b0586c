-- create: a new sandbox, before anything runs.
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
-- ARGV[5]  nodes        <prefix>:{<p>}:node: (the node completes the key)
-- ARGV[6]  node         the node it is on, or ""
-- ARGV[7]  epoch        decimal
-- ARGV[8]  created_at   RFC 3339
-- ARGV[9]  ... metadata fields and values
--
-- Reply
--   OK <record>                 the new record
--   ALREADY_EXISTS <state>      nothing was changed
--
-- @include lib/status
-- @include lib/change

local record, events, all_nodes = KEYS[1], KEYS[2], KEYS[7]
local indexes = { INIT = KEYS[3], READY = KEYS[4], NOTREADY = KEYS[5], UNKNOWN = KEYS[6] }
local id, by, request, maxlen = ARGV[1], ARGV[2], ARGV[3], ARGV[4]
local nodes, node, epoch, created_at = ARGV[5], ARGV[6], ARGV[7], ARGV[8]
local metadata = { unpack(ARGV, 9) }

local known = read(record)
if known and known.request == request then
  return whole(record)
end
if known then
  return { "ALREADY_EXISTS", known.state }
end
local on_node = probe(events, nodes .. node, all_nodes)

local status = { state = "INIT", pid = "0", created_at = created_at, exited_at = "", exit_status = "0",
  node = node, epoch = epoch }
insert(record, events, indexes, all_nodes, nodes, on_node, maxlen, id, "create", status, by, request, metadata)
return whole(record)
