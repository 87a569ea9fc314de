"""The rows of the README's table, from files of results."""
