"""What a run on a cluster needs, checked piece by piece: each says what it found and what to do about it."""
