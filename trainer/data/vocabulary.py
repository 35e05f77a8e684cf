"""What decides the tokenizer beside the text, apart from the library, so that a fingerprint needs no import of it."""

from __future__ import annotations

END_OF_TEXT = "<|endoftext|>"
MIN_VOCABULARY, MAX_VOCABULARY = 257, 65536
"""256 bytes and the end of text; what uint16 holds."""
MIN_FREQUENCY = 2
TRAINING_BYTES = 256_000_000
"""Training text that the tokenizer learns from, at most: its memory grows with it."""
SETTINGS = {
    "model": "byte-level BPE",
    "pattern": "gpt2",
    "min_frequency": MIN_FREQUENCY,
    "special": [END_OF_TEXT],
    "training_bytes": TRAINING_BYTES,
}
"""Hashed into the dataset's fingerprint."""
