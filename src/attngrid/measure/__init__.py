"""What models cost and show: counts, time, memory and attention maps."""
