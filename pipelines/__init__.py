"""The ladder: the pipeline of a study, compiled for a cluster or run on this machine, and the command line."""
