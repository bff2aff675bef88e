# What the token of a team may do whose modules share a beginning of their names: register these, and nothing
# else. With the beginning in place of "fin":
#   consul acl policy create -name fin-register -rules @team-register.hcl
#   consul acl token create -description 'team fin' -policy-name fin-register
# Mind that "fin" is the beginning of "financial" and of "finch" too.

service_prefix "fin" {
  policy = "write"
}

node_prefix "" {
  policy = "read"
}
