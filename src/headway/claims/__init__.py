"""What the history of the transformer says, as experiments that anyone can run; `headway claims`."""
