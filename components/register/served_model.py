"""The registered model as MLflow runs it: this file is stored with the weights ("models from code"), no pickle is.

model = mlflow.pyfunc.load_model("models:/param-allocation@candidate")
model.predict(pandas.DataFrame({"text": ["Once upon a time"]}))    # loss, tokens, bits_per_byte: a row a text
model.unwrap_python_model().evaluate("runs/data/<fingerprint>")    # the declared evaluation: the verdict's loss
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas as pd
from mlflow.pyfunc import PythonModel


class ServedLanguageModel(PythonModel):  # type: ignore[misc]  # mlflow is untyped
    """Weights, their config and their tokenizer, ready to score text. Losses are nats per token."""

    def load_context(self, context: Any) -> None:
        """Load what the model was stored with. Raises CheckpointError where it is damaged."""
        from podium.trainer.builtin.checkpoint import load_model
        from podium.trainer.builtin.data.tokenizer import bytes_per_token, end_of_text, load_tokenizer
        from podium.trainer.builtin.setup import choose_device

        weights = Path(context.artifacts["weights"])
        model, self.config = load_model(weights)
        self.tokenizer = self.token_bytes = self.end_of_text = None
        if "tokenizer" in context.artifacts:
            self.tokenizer = load_tokenizer(Path(context.artifacts["tokenizer"]).parent)
            self.token_bytes = bytes_per_token(self.tokenizer)
            self.end_of_text = end_of_text(self.tokenizer)
        self.device = choose_device(self.config.runtime.device)
        self.model = model.to(self.device)

    def predict(self, context: Any, model_input: pd.DataFrame, params: dict[str, Any] | None = None) -> pd.DataFrame:
        """Score each text of the column `text`, every token of it given those before, from an end-of-text token on.

        A text longer than the model's sequence is scored in pieces of that length. An empty text has no loss: NaN.
        Raises DataError for a model that was trained on tokens without their tokenizer: it can only `evaluate`.
        """
        if self.tokenizer is None:
            from podium.trainer.trial.errors import DataError

            raise DataError("this model was trained on ready-made tokens, and their tokenizer was not given")
        rows = [self._score(text) for text in model_input["text"]]
        return pd.DataFrame(rows, columns=["loss", "tokens", "bits_per_byte"])

    def evaluate(self, dataset_folder: str) -> dict[str, float | int | None]:
        """The evaluation that the study declared, on the prepared dataset (`<store>/data/<fingerprint>`, path or URI).

        The same sequences, batches, precision and threads as in training: on the same type of device `loss` is the
        one that the verdict states for this model, to 1e-6. Raises DataError for a folder without such a dataset.
        """
        import torch

        from podium.trainer.builtin.data.loader import evaluation_batches
        from podium.trainer.builtin.data.manifest import dataset_folder as local_folder

        folder, config = local_folder(dataset_folder), self.config
        batches = evaluation_batches(
            folder,
            config.data.validation_split,
            sequence_length=config.data.sequence_length,
            batch_sequences=config.evaluation.batch_sequences,
            sequences=config.evaluation.sequences,
        )
        threads = torch.get_num_threads()
        torch.set_num_threads(config.runtime.threads or threads)
        try:
            found = self._evaluate(batches)
        finally:
            torch.set_num_threads(threads)
        return {
            "loss": found.loss,
            "perplexity": found.perplexity,
            "bits_per_byte": found.bits_per_byte,
            "tokens": found.tokens,
        }

    def _score(self, text: str) -> tuple[float, int, float]:
        assert self.tokenizer is not None
        ids = np.asarray([self.end_of_text, *self.tokenizer.encode(text).ids], dtype=np.int64)
        if len(ids) < 2:
            return math.nan, 0, math.nan
        length = self.config.data.sequence_length
        pieces = [ids[start : start + length + 1] for start in range(0, len(ids) - 1, length)]
        found = self._evaluate((piece[None, :-1], piece[None, 1:]) for piece in pieces)
        return found.loss, found.tokens, math.nan if found.bits_per_byte is None else found.bits_per_byte

    def _evaluate(self, batches: Any) -> Any:
        from podium.trainer.builtin.evaluation.perplexity import evaluate_loss
        from podium.trainer.builtin.setup import choose_precision

        precision = choose_precision(self.config.runtime.precision, self.device)
        return evaluate_loss(
            self.model, batches, device=self.device, autocast=precision.autocast(), token_bytes=self.token_bytes
        )


mlflow.models.set_model(ServedLanguageModel())
