"""Base models, their forward pass and LoRA adapters."""
