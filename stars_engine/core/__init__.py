"""The engine core: requests in flight, one step at a time."""
