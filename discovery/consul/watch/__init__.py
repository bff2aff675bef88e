"""Watches Consul by blocking queries."""
