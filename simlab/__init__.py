"""Honest stand-ins for what a laptop has not got. The roles never import this room."""
