"""Scores as pure functions of numbers and strings."""
