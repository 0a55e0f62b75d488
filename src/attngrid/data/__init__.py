"""Datasets: their names, preparing their files, and batches of augmented images."""
