import sys
from pathlib import Path

# benchmarks are run as `python -m tests.benchmarks.…` from the root, which pytest does not put on the path
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
