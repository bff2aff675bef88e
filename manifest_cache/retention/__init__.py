"""Deletes what is older than its retention."""
