"""The trainer: PyTorch training of one run. It knows no variants, no stages and no Kubernetes."""
