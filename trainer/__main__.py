"""`python -m podium.trainer …`."""

from __future__ import annotations

import os
import sys

# before the imports, which take seconds: whoever follows the log sees at once that the trial has begun
if sys.argv[1:2] == ["train"] and "--help" not in sys.argv and os.environ.get("RANK", "0") == "0":
    print(f"podium trainer: attempt {os.environ.get('PODIUM_ATTEMPT', '1')}, process {os.getpid()}", flush=True)

from podium.trainer.builtin.cli import main

if __name__ == "__main__":
    main()
