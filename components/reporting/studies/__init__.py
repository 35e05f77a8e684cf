"""What the reports of particular studies add."""
