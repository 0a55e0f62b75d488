"""Records to tidy frames. Nothing here needs torch."""
