"""What to run: the configuration of a study, its cells, resources and plan. Imports no torch."""
