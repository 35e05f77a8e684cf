"""What the steps of a study do. Each step folder has `component.py` (the KFP signature) and `step.py` (the logic)."""
