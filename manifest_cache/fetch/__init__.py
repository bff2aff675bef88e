"""Fetches manifests that are due, within bounds."""
