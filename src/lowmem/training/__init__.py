"""One run, from its checkpoint to its record."""
