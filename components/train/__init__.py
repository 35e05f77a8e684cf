"""The step train: one stage's conductor, which ends when each of the stage's trials has a result."""
