"""The SQL tables, their migrations, and reading them."""
