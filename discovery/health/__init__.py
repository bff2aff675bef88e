"""Health checks: how a module describes them, and how they are tried."""
