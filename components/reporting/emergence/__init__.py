"""What a study of mixtures of experts adds to a report: how routing came out, by run, layer and domain."""
