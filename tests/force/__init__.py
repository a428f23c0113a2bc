"""Trials by force: run as modules, each prints counts."""
