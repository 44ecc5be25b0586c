-- states: the state machine, one line for each move that exists; every other move is refused.
-- sandbox_redis/states.py holds the same table, and a test holds the two equal.

local MACHINE = [[

create absent -> INIT
load absent -> READY NOTREADY UNKNOWN
start INIT -> READY
fail_start INIT -> absent
port_forward READY -> READY
stop READY -> NOTREADY
stop NOTREADY -> NOTREADY
stop UNKNOWN -> NOTREADY
exit READY -> NOTREADY
exit NOTREADY -> NOTREADY
remove absent -> absent
remove NOTREADY -> absent
force_remove absent -> absent
force_remove INIT -> absent
force_remove READY -> NOTREADY
force_remove NOTREADY -> absent
force_remove UNKNOWN -> NOTREADY
update INIT -> INIT READY
update READY -> READY NOTREADY
update NOTREADY -> NOTREADY
update UNKNOWN -> UNKNOWN NOTREADY
]]

-- moves: the states that `operation` may lead to from `before`, as "READY NOTREADY"; nil when it is refused.
local function moves(operation, before)
  local _, last = string.find(MACHINE, "\n" .. operation .. " " .. before .. " -> ", 1, true)
  return last and string.match(MACHINE, "^[^\n]+", last + 1)
end

-- allows: whether `operation` may lead from `before` to `after`.
local function allows(operation, before, after)
  local states = moves(operation, before)
  return states ~= nil and string.find(" " .. states .. " ", " " .. after .. " ", 1, true) ~= nil
end
