"""Podium: staged language-model training experiments on Kubernetes."""

__version__ = "0.1.0"
