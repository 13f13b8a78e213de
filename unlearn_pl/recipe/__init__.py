"""The whole pipeline as stages: prepare, fit twice, merge, evaluate, report."""
