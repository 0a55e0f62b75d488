"""Measurements of models: parameters, MACs, time, memory and attention maps."""
