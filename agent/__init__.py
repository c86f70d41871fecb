"""Capture, reduce, ship: the Mobility agent on the failed-over machine."""
