"""What `python -m envs` can do: one file a command."""
