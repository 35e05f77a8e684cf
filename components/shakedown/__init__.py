"""The gate before any paid stage: a short run that must train, save, resume and be recorded."""
