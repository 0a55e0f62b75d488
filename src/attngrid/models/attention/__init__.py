"""Attention modules, one a file."""
