"""What a run shows afterwards of the weights that it trained or merged."""
