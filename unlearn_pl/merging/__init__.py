"""Merging LoRA adapters of one base model."""
