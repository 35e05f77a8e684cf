"""Kubeflow Pipelines from outside: how its API is reached, what is asked of it, and its errors in one clear line."""
