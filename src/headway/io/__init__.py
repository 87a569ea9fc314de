"""Files from untrusted sources, and files of our own: opened safely, within limits, and written durably."""
