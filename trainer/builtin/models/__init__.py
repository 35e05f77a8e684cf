"""The models and what they share. `build.build_model` makes one from its config."""
