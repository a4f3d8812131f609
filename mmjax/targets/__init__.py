"""What a masked part is to be predicted as: a name in a config is a file here."""
