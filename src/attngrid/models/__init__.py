"""Backbones and attention modules; importing this package imports no torch."""
