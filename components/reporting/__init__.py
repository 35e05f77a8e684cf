"""The report of a run: a page that can be mailed, a summary, one table of all trials and the figures."""
