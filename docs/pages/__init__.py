"""What docs/reference.py writes."""
