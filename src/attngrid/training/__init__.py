"""Training one cell: recipe, loop, record."""
