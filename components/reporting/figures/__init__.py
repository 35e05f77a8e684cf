"""Plots as SVG, each a function of the rows of a results.csv."""
