"""The command-line trainer."""
