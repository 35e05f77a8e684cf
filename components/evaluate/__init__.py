"""The step after the last verdict: every finalist measured with the device to itself."""
