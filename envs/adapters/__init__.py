"""Environments that come from elsewhere: thin adapters, each for a package that is not installed by default."""
