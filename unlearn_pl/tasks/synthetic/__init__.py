"""A seeded benchmark of invented documents in the shape of LUME, and simple questions in the shape of MMLU."""
