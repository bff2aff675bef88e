"""Keeps finished answers while the index stays."""
