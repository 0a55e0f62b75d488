"""Errors, files, types and hardware names: nothing here knows about attention or studies."""
