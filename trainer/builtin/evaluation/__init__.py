"""What a trained model is worth: perplexity, SmallBench, and what it costs to run."""
