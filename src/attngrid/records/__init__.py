"""The record and the status of each cell, and the code that made them."""
