"""Data jobs that need a model: scores, features, tokens, labels of every record, kept as columns."""
