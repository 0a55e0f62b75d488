"""What a training leaves behind: its record, its status and what the code was."""
