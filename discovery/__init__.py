"""Finds modules: registries in, instances and changes out; and registers modules there."""

__version__ = "0.1.0"
