"""Losses of a user's own, one for each input that a term may need; found by import path."""
