"""The first step: the study becomes a run, its data is prepared, its store and its tracking are made ready."""
