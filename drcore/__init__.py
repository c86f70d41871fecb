"""The words everybody speaks: units, error codes, limits, clock."""
