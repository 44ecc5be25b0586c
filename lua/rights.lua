-- rights: which commands may this user not send? Nothing is sent; a server before Redis 7 cannot tell.
--
-- KEYS[1]  record       <prefix>:{<p>}:status:<id>
--
-- ARGV[1]  ... commands  each one as the number of its words, and the words
--
-- Reply
--   OK <forbidden>              their places among the commands, from 1
--   UNKNOWN                     this server cannot tell

local record = KEYS[1]
local commands = { unpack(ARGV, 1) }

if not redis.acl_check_cmd or record == "" then
  return { "UNKNOWN" }
end
local forbidden, place, i = {}, 0, 1
while i <= #commands do
  local words = tonumber(commands[i])
  place = place + 1
  if not redis.acl_check_cmd(unpack(commands, i + 1, i + words)) then
    forbidden[#forbidden + 1] = place
  end
  i = i + words + 1
end
return { "OK", forbidden }
