"""What all predictors share: a loaded model, its evaluation, inputs from callers and attention weights."""
