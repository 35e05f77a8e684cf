"""What every way of training keeps to, without PyTorch: store, lease, metrics, result, stop rules, sync to MLflow."""
