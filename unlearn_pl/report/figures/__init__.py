"""The figures of runs: each module makes those of one kind from what runs wrote."""
