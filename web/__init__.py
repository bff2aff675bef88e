"""Serves what the cache holds: SQL tables in, HTTP and terminal out."""
