"""Frames and published figures to LaTeX, Markdown, CSV, figures and a report. No torch here."""
