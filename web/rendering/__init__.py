"""Renders rows as JSON, and only those that changed."""
