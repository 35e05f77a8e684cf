"""What gives way where memory runs out: first the forward pass, then the sequence.

One sequence a pass with as many more passes is the same optimisation. Shorter sequences are another one: the run then
begins again, and its result says so. What was taken is noted in the run's folder, so that a restart begins with it.
"""

from __future__ import annotations

from podium.trainer.checkpoint import step_of
from podium.trainer.config import TrainConfig
from podium.trainer.errors import NotFoundError
from podium.trainer.storage import Storage

NOTED = "memory.json"
SHORT = 256
"""Tokens of the shorter sequence."""


class MemoryFallback:
    """The fallbacks of one run, those that it has taken first."""

    def __init__(self, folder: Storage, config: TrainConfig) -> None:
        self._folder = folder
        self.config = config
        """The config as it stands with what was taken."""
        self.taken: list[str] = []
        """A sentence for each."""
        if not config.batch.fit_memory:
            return
        try:
            noted = int(folder.read_json(NOTED)["taken"])
        except NotFoundError:
            noted = 0
        for _ in range(noted):
            self._apply()

    @property
    def can_take(self) -> bool:
        """Whether something is left that can be made smaller."""
        return self.config.batch.fit_memory and _smaller(self.config) is not None

    def take(self, checkpoints: Storage) -> str:
        """Make the next thing smaller, and note it; the sentence that says what.

        `checkpoints` is where those of the run lie: none of another sequence length is left to be gone on from.
        """
        self._apply()
        if self.starts_over:
            for key in checkpoints.list():
                if step_of(key) is not None:
                    checkpoints.delete(key)
        self._folder.write_json(NOTED, {"taken": len(self.taken), "said": self.taken})
        return self.taken[-1]

    @property
    def starts_over(self) -> bool:
        """Whether the last one taken changes the sequences, so that no checkpoint from before fits."""
        return bool(self.taken) and self.taken[-1].startswith("sequences")

    def _apply(self) -> None:
        found = _smaller(self.config)
        if found is not None:
            self.config, said = found
            self.taken.append(said)


def _smaller(config: TrainConfig) -> tuple[TrainConfig, str] | None:
    batch, length = config.batch, config.data.sequence_length
    micro = batch.micro_batch or batch.sequences
    if micro > 1:
        update = {
            "batch": batch.model_copy(update={"micro_batch": 1}),
            "evaluation": config.evaluation.model_copy(update={"batch_sequences": 1}),
        }
        said = f"batch 1 × accumulation {batch.sequences} instead of {micro} × {batch.sequences // micro}"
        return config.model_copy(update=update), said
    if length > SHORT and config.curriculum is None:
        update = {"data": config.data.model_copy(update={"sequence_length": SHORT})}
        return config.model_copy(update=update), f"sequences of {SHORT} tokens instead of {length}"
    return None
