"""How long to wait: durations as people write them, and pauses that grow."""
