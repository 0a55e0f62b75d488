"""Attention modules, one in each file.

``channels`` is C of the N×C×H×W input and output. ``reduction`` is r: the hidden width of a
perceptron is max(1, C // r).
"""
