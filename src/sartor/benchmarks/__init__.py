"""Published benchmarks as package data: tables with their origin and licence, and the spaces that they are measured on. Numpy only."""

from __future__ import annotations

from sartor.benchmarks.tables import Column, Table, catalogue, table

__all__ = ["Column", "Table", "catalogue", "table"]
