"""Bytes in motion: frames, session states, keys, versions. Sans-I/O."""
