"""What happened in runs: figures, tables and one page, made from the files that they wrote; no model is loaded."""
