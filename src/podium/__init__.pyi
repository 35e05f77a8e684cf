from podium.components.study.load import Study as Study
from podium.components.study.plan import plan as plan
from podium.components.verdicts.compare import compare as compare
from podium.pipelines.notebook import compile as compile  # noqa: A004
from podium.pipelines.notebook import run as run
from podium.pipelines.notebook import submit as submit
from podium.pipelines.notebook import upload as upload
from podium.pipelines.notebook import wait as wait

__version__: str
__all__ = ["Study", "compare", "compile", "plan", "run", "submit", "upload", "wait"]
