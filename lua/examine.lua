-- examine: what a partition holds of some sandboxes and nodes, all of one moment. It writes nothing, and goes on where a
-- key is of another type.
--
-- KEYS[1]    events     <prefix>:{<p>}:events
-- KEYS[2-5]  indexes    <prefix>:{<p>}:state:<STATE>, for INIT, READY, NOTREADY, UNKNOWN
-- KEYS[6]    all_nodes  <prefix>:{<p>}:nodes
--
-- ARGV[1]  records      <prefix>:{<p>}:status: (an id completes the key)
-- ARGV[2]  nodes        <prefix>:{<p>}:node: (a node completes the key)
-- ARGV[3]  after        where the events go on that are not known yet: "-", or "(" and the newest known
-- ARGV[4]  ... asked    "sandbox", an id and a node whose index may have it, or ""; and "node", "" and a node, in turns
--
-- Reply
--   OK <first> <events> <found>  the oldest event, those not known yet, and for each asked
--                                sandbox: the record, its scores in the four states, on its own node, on the node asked
--                                for, and the score of its own node and how many that has
--                                node: how many it has, and its score

local events, all_nodes = KEYS[1], KEYS[6]
local indexes = { INIT = KEYS[2], READY = KEYS[3], NOTREADY = KEYS[4], UNKNOWN = KEYS[5] }
local records, nodes, after = ARGV[1], ARGV[2], ARGV[3]
local asked = { unpack(ARGV, 4) }

-- ask: false for a key of another type; whoever asks finds that out by other means.
local function ask(...)
  local reply = redis.pcall(...)
  if reply and not tonumber(reply) and reply.err then
    return not string.find(tostring(reply.err), "WRONGTYPE", 1, true) and redis.call(...)
  end
  return reply
end

local function look(kind, id, node)
  if kind == "node" then
    local on_node = ask("ZCARD", nodes .. node)
    return { on_node, ask("ZSCORE", all_nodes, node) }
  end
  local own = ask("HGET", records .. id, "node") or ""
  return {
    ask("HGETALL", records .. id),
    ask("ZSCORE", indexes.INIT, id),
    ask("ZSCORE", indexes.READY, id),
    ask("ZSCORE", indexes.NOTREADY, id),
    ask("ZSCORE", indexes.UNKNOWN, id),
    own ~= "" and ask("ZSCORE", nodes .. own, id),
    node ~= "" and ask("ZSCORE", nodes .. node, id),
    own ~= "" and ask("ZSCORE", all_nodes, own),
    own ~= "" and ask("ZCARD", nodes .. own),
  }
end

local found = {}
for i = 1, #asked, 3 do
  found[#found + 1] = look(asked[i], asked[i + 1], asked[i + 2])
end
local first = ask("XRANGE", events, "-", "+", "COUNT", 1) or {}
local since = ask("XRANGE", events, after, "+") or {}
return { "OK", first, since, found }
