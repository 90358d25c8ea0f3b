"""What a run keeps on disk, and what is read from there."""
