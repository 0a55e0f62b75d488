"""Frames and published figures as LaTeX, Markdown, CSV, figures and a report; no torch."""
