"""Keeps what modules say of themselves: changes in, SQL tables out."""
