"""Files of particular studies that the report adds to the common ones."""
