"""Benchmark rows: reading, encoding, pairing, and the Lightning data module over them."""
