-- meta: say how this store is laid out; the first client to ask decides, every later one follows.
--
-- KEYS[1]  meta        <prefix>:meta
--
-- ARGV[1]  schema      the layout this client writes
-- ARGV[2]  partitions  how many partitions, if the store is new
-- ARGV[3]  maxlen      about how many events each partition keeps, if the store is new
--
-- Reply
--   OK <schema> <partitions> <events_maxlen>

local meta = KEYS[1]
local schema, partitions, maxlen = ARGV[1], ARGV[2], ARGV[3]

if redis.call("EXISTS", meta) == 0 then
  redis.call("HSET", meta, "schema", schema, "partitions", partitions, "events_maxlen", maxlen)
end
return { "OK", unpack(redis.call("HMGET", meta, "schema", "partitions", "events_maxlen")) }
