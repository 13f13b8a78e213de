"""unlearn_pl: make a language model forget given documents, and prove how well that went."""

__version__ = "0.1.0"
