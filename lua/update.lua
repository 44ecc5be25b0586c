-- update: write the status that an update made of the one it saw. The caller's WATCH holds that one still, also against
-- changes that are not the store's; the revision is for a user who may not WATCH.
--
-- KEYS[1]    record     <prefix>:{<p>}:status:<id>
-- KEYS[2]    events     <prefix>:{<p>}:events
-- KEYS[3-6]  indexes    <prefix>:{<p>}:state:<STATE>, for INIT, READY, NOTREADY, UNKNOWN
--
-- ARGV[1]  id           the sandbox
-- ARGV[2]  by           the agent that asks
-- ARGV[3]  request      the token of this write
-- ARGV[4]  maxlen       about how many events the stream keeps
-- ARGV[5]  state        the state it is to have
-- ARGV[6]  pid          decimal
-- ARGV[7]  created_at   RFC 3339, or "" for none
-- ARGV[8]  exited_at    RFC 3339, or "" for none
-- ARGV[9]  exit_status  decimal
-- ARGV[10]  seen        the revision of the record that the update saw, or "none"
--
-- Reply
--   OK <record>                 the record as it now is
--   NOT_FOUND
--   CONFLICT                    the record is not the one that was seen
--   TRANSITION <state>          the state that refuses
--
-- @include lib/states
-- @include lib/status
-- @include lib/change

local record, events = KEYS[1], KEYS[2]
local indexes = { INIT = KEYS[3], READY = KEYS[4], NOTREADY = KEYS[5], UNKNOWN = KEYS[6] }
local id, by, request, maxlen = ARGV[1], ARGV[2], ARGV[3], ARGV[4]
local state, pid, created_at, exited_at, exit_status = ARGV[5], ARGV[6], ARGV[7], ARGV[8], ARGV[9]
local seen = ARGV[10]

local status = read(record)
if not status then
  return { "NOT_FOUND" }
end
if status.request == request then
  return whole(record)
end
if seen ~= (redis.call("HGET", record, "revision") or "none") then
  return { "CONFLICT" }
end
if not allows("update", status.state, state) then
  return { "TRANSITION", status.state }
end
probe(events, indexes[state])

local before = status.state
status.state, status.pid, status.exit_status = state, pid, exit_status
status.created_at, status.exited_at = created_at, exited_at
move(record, events, indexes, maxlen, id, "update", before, status, by, request)
return whole(record)
