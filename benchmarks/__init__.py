"""Measurements: ours and a peer in the same run on the same bytes, results checked, ratios published."""
