"""What a run shows afterwards: angles, tables, figures."""
