-- stop: the sandbox was stopped; its process does not run any more.
--
-- KEYS[1]    record     <prefix>:{<p>}:status:<id>
-- KEYS[2]    events     <prefix>:{<p>}:events
-- KEYS[3-6]  indexes    <prefix>:{<p>}:state:<STATE>, for INIT, READY, NOTREADY, UNKNOWN
--
-- ARGV[1]  id           the sandbox
-- ARGV[2]  by           the agent that asks
-- ARGV[3]  request      the token of this write
-- ARGV[4]  maxlen       about how many events the stream keeps
-- ARGV[5]  exit_status  of the process, or "" when it is not known
-- ARGV[6]  exited_at    RFC 3339, or "" when it is not known
-- ARGV[7]  unreadable   the revision of a record that cannot be read and so is UNKNOWN, or "none"; "" for others
--
-- Reply
--   OK <record>                 the record as it now is; unchanged when it was NOTREADY
--   NOT_FOUND
--   TRANSITION <state>          the state that refuses
--
-- @include lib/states
-- @include lib/status
-- @include lib/change

local record, events = KEYS[1], KEYS[2]
local indexes = { INIT = KEYS[3], READY = KEYS[4], NOTREADY = KEYS[5], UNKNOWN = KEYS[6] }
local id, by, request, maxlen = ARGV[1], ARGV[2], ARGV[3], ARGV[4]
local exit_status, exited_at, unreadable = ARGV[5], ARGV[6], ARGV[7]

local status = read(record)
if not status then
  return { "NOT_FOUND" }
end
if status.request == request then
  return whole(record)
end
if unreadable ~= "" and unreadable == (redis.call("HGET", record, "revision") or "none") then
  status.state = "UNKNOWN"
end
if not moves("stop", status.state) then
  return { "TRANSITION", status.state }
end
if status.state == "NOTREADY" then
  return whole(record)
end
probe(events, indexes.NOTREADY)

local before = status.state
status.state, status.pid = "NOTREADY", "0"
if exited_at ~= "" and not status.exited_at then
  status.exit_status, status.exited_at = exit_status, exited_at
end
move(record, events, indexes, maxlen, id, "stop", before, status, by, request)
return whole(record)
