"""From a corpus to batches: documents, byte-level BPE, memory-mapped shards, and a loader that resumes exactly."""
