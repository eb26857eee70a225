"""Predictors: cheap models of what is expensive to evaluate."""
