"""How well a model forgot and what it kept: generation, membership, multiple choice, and the scores made of them."""
