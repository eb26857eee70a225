"""Evaluators: callables from an architecture to a mapping of metrics."""
