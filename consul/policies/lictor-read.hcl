# What Lictor's own token may do. Make it and a token for it:
#   consul acl policy create -name lictor-read -rules @lictor-read.hcl
#   consul acl token create -description lictor -policy-name lictor-read
# Put the token's SecretID into a file that only Lictor reads: CONSUL_HTTP_TOKEN_FILE=/etc/lictor/token

# The catalog and the health of every service and node. Without these two, Consul 1.8 answers with
# an empty list and status 200, just as if there were no service: `lictor doctor` tells them apart.
service_prefix "" {
  policy = "read"
}

node_prefix "" {
  policy = "read"
}

# The agent's own name, datacenter and version, for `lictor doctor`.
agent_prefix "" {
  policy = "read"
}

# Several synchronizers choose their leader by a session that holds a key (LICTOR_LEADER_KEY), and by
# signs of life of the service as which each of them registers itself. Without one of these three
# rights they use the database's lock alone.
session_prefix "" {
  policy = "write"
}

key_prefix "lictor/" {
  policy = "write"
}

service "lictor" {
  policy = "write"
}
