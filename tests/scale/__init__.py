"""What takes too long for the ordinary tests, as one table: case, expected, got. `make test-scale` runs it."""
