-- change: the writes of one change of an existing record, its index entries and its event.
-- Nothing here refuses: whoever calls has read and decided before.

-- probe: fail on keys of another type before anything is written, because a failed script is not rolled back. The key
-- that is written first need not be probed. It returns how many are in `index`.
local function probe(events, index, other)
  redis.call("XLEN", events)
  if other then
    redis.call("ZCARD", other)
  end
  return redis.call("ZCARD", index)
end

-- permit: fail on a command that this user may not send, before anything is written, for the same reason.
local function permit(...)
  if redis.acl_check_cmd and not redis.acl_check_cmd(...) then
    redis.call(...)
  end
end

-- leave: take an id out of the index of its state; where it is not there, out of whichever index has it.
local function leave(indexes, state, id)
  if redis.call("ZREM", indexes[state], id) == 0 then
    for _, index in pairs(indexes) do
      redis.pcall("ZREM", index, id)
    end
  end
end

-- tally: note how many sandboxes a node has. What was noted before does not matter, so a wrong number does not last.
local function tally(all_nodes, node, number)
  if number > 0 then
    redis.call("ZADD", all_nodes, number, node)
  else
    redis.call("ZREM", all_nodes, node)
  end
end

local function put(entry, field, value)
  if value and value ~= "" then
    local n = #entry
    entry[n + 1], entry[n + 2] = field, value
  end
end

-- event: append one change to the stream; its entry id is the revision. `after` is nil after a delete.
local function event(events, maxlen, id, transition, before, after, status, by, request, metadata)
  local entry = { "id", id, "transition", transition }
  put(entry, "before", before)
  put(entry, "state", after)
  put(entry, "pid", status.pid)
  put(entry, "created_at", status.created_at)
  put(entry, "exited_at", status.exited_at)
  put(entry, "exit_status", status.exit_status)
  put(entry, "node", status.node)
  put(entry, "epoch", status.epoch)
  put(entry, "by", by)
  put(entry, "request", request)
  for i = 1, metadata and #metadata or 0 do
    entry[#entry + 1] = metadata[i]
  end
  return redis.call("XADD", events, "MAXLEN", "~", maxlen, "*", unpack(entry))
end

-- move: write `status`, which was in the state `before`, with its index entry and its event.
local function move(record, events, indexes, maxlen, id, transition, before, status, by, request)
  permit("HGETALL", record)
  permit("XADD", events, "*", "id", id)
  permit("HSET", record, "state", status.state)
  if status.exited_at == "" or status.created_at == "" then
    permit("HDEL", record, "exited_at")
  end
  if status.stored ~= status.state then
    permit("ZADD", indexes[status.state], 0, id)
    leave(indexes, before, id)
    redis.call("ZADD", indexes[status.state], 0, id)
  end
  local revision = event(events, maxlen, id, transition, before, status.state, status, by, request)
  local fields = { "state", status.state, "pid", status.pid or "0", "exit_status", status.exit_status or "0",
    "revision", revision, "request", request }
  put(fields, "created_at", status.created_at)
  put(fields, "exited_at", status.exited_at)
  if status.created_at == "" then
    redis.call("HDEL", record, "created_at")
  end
  if status.exited_at == "" then
    redis.call("HDEL", record, "exited_at")
  end
  redis.call("HSET", record, unpack(fields))
end

-- erase: delete a record with its index entries, and append the event that says so. `on_node` is how many its node has
-- with it, as `probe` returned it.
local function erase(record, events, indexes, all_nodes, nodes, on_node, maxlen, id, transition, status, by, request)
  permit("XADD", events, "*", "id", id)
  permit("DEL", record)
  permit("ZREM", nodes .. status.node, id)
  permit("ZREM", all_nodes, id)
  permit("ZADD", all_nodes, 0, id)
  leave(indexes, status.state, id)
  if status.node ~= "" then
    tally(all_nodes, status.node, on_node - redis.call("ZREM", nodes .. status.node, id))
  end
  event(events, maxlen, id, transition, status.state, nil, status, by, request)
  redis.call("DEL", record)
end

-- insert: write a record that was not there, with its index entries and its event. `on_node` is how many its node has
-- without it, as `probe` returned it; `metadata` is a flat list of fields and values.
local function insert(record, events, indexes, all_nodes, nodes, on_node, maxlen, id, transition, status, by, request,
  metadata)
  permit("HGETALL", record)
  permit("XADD", events, "*", "id", id)
  permit("HSET", record, "state", status.state)
  permit("ZADD", nodes .. status.node, 0, id)
  permit("ZADD", all_nodes, 0, id)
  redis.call("ZADD", indexes[status.state], 0, id)
  if status.node ~= "" then
    tally(all_nodes, status.node, on_node + redis.call("ZADD", nodes .. status.node, 0, id))
  end
  local revision = event(events, maxlen, id, transition, nil, status.state, status, by, request, metadata)
  local fields = { "revision", revision, "request", request }
  for field, value in pairs(status) do
    if value ~= "" then
      fields[#fields + 1] = field
      fields[#fields + 1] = value
    end
  end
  redis.call("HSET", record, unpack(fields))
  if #metadata > 0 then
    redis.call("HSET", record, unpack(metadata))
  end
end
