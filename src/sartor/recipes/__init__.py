"""Training recipes: plain functions, no trainer classes. Submodules are imported by name, so that light callers stay light."""
