"""What every room may use: text of others, safe to show, read and write."""
