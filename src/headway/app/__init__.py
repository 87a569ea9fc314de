"""What people use: the Python face, models at work, comparisons and the command line."""
