"""The commands that are plain functions, one a file."""
