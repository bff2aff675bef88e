# A Consul agent in client mode: one on each host that runs modules, and one on the host of Lictor.
# Modules and Lictor speak to it over the loopback interface; it forwards to the servers.
#
# Start it:  consul agent -config-file=agent-client.hcl -config-dir=services/
# Then give it its token (it keeps it in data_dir):  consul acl set-agent-token agent TOKEN

server     = false
datacenter = "dc1"
data_dir   = "/opt/consul"

# The address that other agents reach, and the one that programs on this host use.
bind_addr   = "{{ GetPrivateIP }}"
client_addr = "127.0.0.1"

retry_join = [
  "consul-1.example.internal",
  "consul-2.example.internal",
  "consul-3.example.internal",
]

# A host that is shut down on purpose takes its services with it, instead of leaving them critical.
leave_on_terminate = true

acl {
  enabled        = true
  default_policy = "deny"
  # With the servers away, tokens and policies that were known stay in force.
  down_policy              = "extend-cache"
  enable_token_persistence = true
}

limits {
  # Consul's own default, written down since each watcher counts: Lictor holds a handful of
  # connections whatever the number of services, but other programs of this host share the limit.
  http_max_conns_per_client = 200
}

# Changes of a check's output alone reach the catalog at most this often; its status at once.
check_update_interval = "5m"

# Checks call addresses; a registration must never make an agent run a program.
enable_script_checks = false

ports {
  http = 8500
  dns  = 8600
}

disable_update_check = true
log_level            = "INFO"
