# What an operator's token may do: see everything, put an instance into maintenance, and take away one that
# nobody else can. It makes no tokens and no policies.
#   consul acl policy create -name operator -rules @operator.hcl

service_prefix "" {
  policy = "write"
}

node_prefix "" {
  policy = "read"
}

agent_prefix "" {
  policy = "read"
}

# The lead of the synchronizers: who holds it, and, where it must be, taking it from him.
session_prefix "" {
  policy = "write"
}

key_prefix "lictor/" {
  policy = "read"
}

query_prefix "" {
  policy = "write"
}

operator = "read"
