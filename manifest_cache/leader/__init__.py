"""Elects the one synchronizer that writes."""
