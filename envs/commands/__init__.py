"""The commands of `python -m envs`: one file per command."""
