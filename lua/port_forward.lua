-- port_forward: may ports of this sandbox be forwarded? A guard; it writes nothing.
--
-- KEYS[1]  record       <prefix>:{<p>}:status:<id>
--
-- Reply
--   OK <record>                 it may
--   NOT_FOUND
--   TRANSITION <state>          the state that refuses
--
-- @include lib/states
-- @include lib/status

local record = KEYS[1]

local status = read(record)
if not status then
  return { "NOT_FOUND" }
end
if not moves("port_forward", status.state) then
  return { "TRANSITION", status.state }
end
return whole(record)
