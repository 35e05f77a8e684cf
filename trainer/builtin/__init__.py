"""The built-in PyTorch trainer. Start reading at `loop.py`."""
