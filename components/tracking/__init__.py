"""What the MLflow server of a cluster needs and MLflow does not bring."""
