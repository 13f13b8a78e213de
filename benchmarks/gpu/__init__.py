"""What a GPU gives: exactness there, the training step and evaluation beside competent ones, in one JSON.

From the project's root: ``python -m benchmarks.gpu --json OUT``. Without a GPU everything runs on the CPU at small
shapes.
"""
