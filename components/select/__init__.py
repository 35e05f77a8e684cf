"""The step after each stage: its verdict."""
