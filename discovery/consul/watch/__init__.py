"""Watches Consul: blocking queries in, changes out."""
