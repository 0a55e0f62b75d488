"""Other projects' training loops, rewritten from their documentation; sides of a comparison."""
