"""How often the whole ladder proves what is not so, and how often the kill rule ends what is no worse.

python -m tests.benchmarks.calibration --help
"""
