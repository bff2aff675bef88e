"""Keeps a module registered while it runs, and deregisters it when it ends."""
