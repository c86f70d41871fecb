"""The front door: the homeward command, and all roles wired on one machine."""
