"""The registry Consul: what can be asked, how it is sent, and how a module registers there."""
