"""What the commands share: settings, the database, output and errors."""
