"""Keeps instances, manifests and events in SQL tables."""
