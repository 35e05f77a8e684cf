"""The last step: the whole report, registration included."""
