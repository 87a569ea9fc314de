"""The user interfaces: the Python API, models, comparisons and the command line."""
