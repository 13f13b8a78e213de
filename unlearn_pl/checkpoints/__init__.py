"""Full checkpoints: read block by block, merged over their base, or made into an adapter."""
