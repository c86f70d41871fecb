"""Long campaigns: many seeded rounds against one promise, closed by one line `NAME: n of N`."""
