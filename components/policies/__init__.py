"""Promotion policies, one file each: from the results of a stage to promote, stop or await."""
