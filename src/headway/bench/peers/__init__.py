"""Other programs to compare headway with. Each module runs in its own process and is never imported."""
