"""A stage's conductor as a process that a test can kill: `conductor.py STORE RUN STAGE`."""

import sys

from podium.components.launch.conductor import conduct
from podium.components.launch.open import open_launcher
from podium.components.study.run import Run

run = Run.open(sys.argv[1], sys.argv[2])
resources = run.study.stages[sys.argv[3]].resources
print(conduct(run, sys.argv[3], open_launcher("job", run, sys.argv[3], resources, parallel=resources.parallel)))
