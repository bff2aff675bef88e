"""Request ids, metrics, traces and logs."""
