"""Sends events to receivers by HTTP."""
