"""What a paper calls a model: one file each, named by `name` in a config."""
