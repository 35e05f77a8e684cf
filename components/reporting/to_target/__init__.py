"""What a study of times to a target reports beside its verdicts: effects, answers, plots and a production config."""
