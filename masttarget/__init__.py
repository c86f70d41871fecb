"""Receive, journal, apply: the master target at home."""
