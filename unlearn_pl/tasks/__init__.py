"""Benchmarks: their rows, how a row is scored, and how scores are aggregated."""
