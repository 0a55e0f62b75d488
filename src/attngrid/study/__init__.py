"""What to run: the configuration of a study, its cells, their resources and their plan. No torch."""
