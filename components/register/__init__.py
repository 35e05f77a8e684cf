"""The step that registers the winner's model, with its lineage."""
