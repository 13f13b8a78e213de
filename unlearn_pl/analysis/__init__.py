"""What a run shows afterwards: angles, figures."""
