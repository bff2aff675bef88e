# What a module's token may do: register itself under its own name, and nothing else. One policy per
# module, each with the module's name in place of "financial":
#   consul acl policy create -name financial-register -rules @module-register.hcl
#   consul acl token create -description financial -policy-name financial-register

# Registering, renewing, heartbeats of a TTL check, and deregistering.
service "financial" {
  policy = "write"
}

# Reading its own registration back from the agent, which is how a module sees that it was forgotten.
node_prefix "" {
  policy = "read"
}
