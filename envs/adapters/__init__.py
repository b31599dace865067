"""Thin adapters for environments of other projects, each for a package that is not installed by default."""
