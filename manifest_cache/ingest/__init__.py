"""What registries report, judged and written to the tables."""
