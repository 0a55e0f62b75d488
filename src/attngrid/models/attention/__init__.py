"""Attention modules, one a file.

Each takes ``channels``, C of its N×C×H×W input and output. ``reduction`` is r: the hidden width of
a perceptron is max(1, C // r).
"""
