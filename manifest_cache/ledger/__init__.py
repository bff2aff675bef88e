"""Writes each change of state together with its event."""
