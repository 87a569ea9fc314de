"""Claims from the history of the transformer as runnable experiments; `headway claims`."""
