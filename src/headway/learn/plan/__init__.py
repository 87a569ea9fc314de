"""Planning: measure the machine, predict losses, choose sizes, batches and steps for the minutes."""
