"""Learned latency models: from a few measurements to every architecture of a space, and how far to trust them."""
