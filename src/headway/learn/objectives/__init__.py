"""What can be learned, once each."""
