-- Calls of the built-in service `kv`, for wrk: a cross-check of `stead bench http`.
--   stead start --data ./bench-data &
--   wrk -t1 -c64 -d10s --latency -s scripts/wrk.lua http://127.0.0.1:7420

local next = 0
local headers = { ["content-type"] = "application/json" }

request = function()
  next = (next * 1103515245 + 12345) % 2147483648
  local body = '{"put":{"value":' .. next .. '}}'
  return wrk.format("POST", "/v1/call/kv/k" .. (next % 100000), headers, body)
end

local refused = 0

response = function(status)
  if status ~= 200 then refused = refused + 1 end
end
