"""A promotion policy replayed on recorded training curves, beside what people use today.

python -m tests.benchmarks.replay --help
"""
