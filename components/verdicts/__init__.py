"""Verdicts: what turns a stage's results into promote, stop or await. Pure functions of a study and its results."""
