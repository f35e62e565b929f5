"""What one volunteer's machine does in a run."""
