-- page: the ids of some sandboxes of a partition, filtered, in their order. It ends by itself after about 2 ms.
--
-- KEYS[1-4]  indexes    <prefix>:{<p>}:state:<STATE>, for INIT, READY, NOTREADY, UNKNOWN
-- KEYS[5]    on_node    <prefix>:{<p>}:node:<node>
--
-- ARGV[1]  records      <prefix>:{<p>}:status: (an id completes the key)
-- ARGV[2]  after        the id to go on after, or ""
-- ARGV[3]  only         the one id to look at, or ""
-- ARGV[4]  limit        how many ids at most
-- ARGV[5]  budget       what the page may cost: 1 for each id looked at, 4 more to look into its record, 1 for a field
-- ARGV[6]  wanted       the states, each between blanks
-- ARGV[7]  node         the node that they are on, or "" for any
-- ARGV[8]  ... filters  names and values of fields that must be just so
--
-- Reply
--   OK <after> <ids>            the id to go on after, or "" at the end; the ids

local on_node = KEYS[5]
local indexes = { INIT = KEYS[1], READY = KEYS[2], NOTREADY = KEYS[3], UNKNOWN = KEYS[4] }
local records, after, only, limit, budget = ARGV[1], ARGV[2], ARGV[3], tonumber(ARGV[4]), tonumber(ARGV[5])
local wanted, node = ARGV[6], ARGV[7]
local filters = { unpack(ARGV, 8) }

-- The states are walked side by side, in the order of the ids, so that a sandbox whose state changes between two pages
-- comes neither twice nor never. Those on a node are walked instead where they are fewer.
local walks, size = {}, 0
for state, index in pairs(indexes) do
  if string.find(wanted, " " .. state .. " ", 1, true) then
    walks[#walks + 1] = { index = index }
    size = size + redis.call("ZCARD", index)
  end
end
local names, values = {}, {}
for i = 1, #filters, 2 do
  names[#names + 1], values[#values + 1] = filters[i], filters[i + 1]
end
local by_node = node ~= "" and redis.call("ZCARD", on_node) < size
if by_node then
  walks = { { index = on_node } }
  names[#names + 1] = "state"
elseif node ~= "" then
  names[#names + 1], values[#values + 1] = "node", node
end
local chunk = math.min(limit + 1, 250)

local function fill(walk)
  local from, to = walk.from or (after == "" and "-" or "(" .. after), "+"
  if only ~= "" then
    from, to = walk.from and "+" or "[" .. only, "[" .. only
  end
  walk.ids, walk.at = redis.call("ZRANGE", walk.index, from, to, "BYLEX", "LIMIT", 0, chunk), 1
  local last = walk.ids[#walk.ids]
  walk.from, walk.done = last and "(" .. last, not last
end

-- precedes: as bytes, which "<" does not do: it follows the server's locale.
local function precedes(a, b)
  for i = 1, #a do
    local x, y = string.byte(a, i), string.byte(b, i)
    if x ~= y then
      return y ~= nil and x < y
    end
  end
  return #a < #b
end

local function first()
  local best, id
  for _, walk in ipairs(walks) do
    if not walk.done and (not walk.ids or walk.at > #walk.ids) then
      fill(walk)
    end
    if not walk.done and (not best or precedes(walk.ids[walk.at], id)) then
      best, id = walk, walk.ids[walk.at]
    end
  end
  return best, id
end

local function matches(id)
  local found = redis.pcall("HMGET", records .. id, unpack(names))
  if found.err then
    return true -- whoever looks for trouble must see it
  end
  for i, value in ipairs(values) do
    if found[i] ~= value then
      return false
    end
  end
  local state = by_node and found[#names]
  return not (state and indexes[state]) or string.find(wanted, " " .. state .. " ", 1, true) ~= nil
end

local ids, spent, last = {}, 0, after
local walk, id = first()
while walk and #ids < limit and spent < budget do
  walk.at = walk.at + 1
  if id ~= last then
    last = id
    spent = spent + (#names == 0 and 1 or 5 + #names)
    if #names == 0 or matches(id) then
      ids[#ids + 1] = id
    end
  end
  walk, id = first()
end
return { "OK", walk and last or "", ids }
