# What agents may answer by DNS, where ACLs deny by default. Make it the anonymous token's policy, or that of
# the agents' `tokens.default`:
#   consul acl policy create -name dns -rules @dns.hcl
#   consul acl token update -id anonymous -policy-name dns

service_prefix "" {
  policy = "read"
}

node_prefix "" {
  policy = "read"
}

query_prefix "" {
  policy = "read"
}
