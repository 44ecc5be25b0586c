-- status: read the part of a record that operations decide on, and answer with a whole record.

local KNOWN = { INIT = true, READY = true, NOTREADY = true, UNKNOWN = true }

-- read: the status of a record, or nil when there is no record. A state that is none of the four counts as UNKNOWN.
local function read(record)
  local field = redis.call("HMGET", record, "state", "pid", "created_at", "exited_at", "exit_status",
    "node", "epoch", "request")
  if not field[1] and redis.call("EXISTS", record) == 0 then
    return nil
  end
  return {
    stored = field[1], state = KNOWN[field[1]] and field[1] or "UNKNOWN",
    pid = field[2], created_at = field[3], exited_at = field[4], exit_status = field[5],
    node = field[6] or "", epoch = field[7], request = field[8],
  }
end

-- whole: the reply that carries a record as it now is.
local function whole(record)
  return { "OK", redis.call("HGETALL", record) }
end
