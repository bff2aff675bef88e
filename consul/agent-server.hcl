# A Consul agent in server mode: run three (or five), each on a host of its own. They hold the
# catalog that Lictor watches; Lictor itself speaks to a client agent (agent-client.hcl).
#
# Start it:  consul agent -config-file=agent-server.hcl
# Once a leader is elected, once per cluster:  consul acl bootstrap

server           = true
bootstrap_expect = 3
datacenter       = "dc1"
data_dir         = "/opt/consul"

bind_addr   = "{{ GetPrivateIP }}"
client_addr = "127.0.0.1"

retry_join = [
  "consul-1.example.internal",
  "consul-2.example.internal",
  "consul-3.example.internal",
]

acl {
  enabled                  = true
  default_policy           = "deny"
  down_policy              = "extend-cache"
  enable_token_persistence = true
}

performance {
  # 1 suits servers on hosts of their own: a lost leader is replaced in a few seconds.
  raft_multiplier = 1
}

# A new server proves to be stable before it counts; a dead one is removed.
autopilot {
  cleanup_dead_servers      = true
  server_stabilization_time = "10s"
}

ui                   = true
enable_script_checks = false

ports {
  http = 8500
  dns  = 8600
}

disable_update_check = true
log_level            = "INFO"
