"""What every room may use: errors, files, locks, progress, places."""
