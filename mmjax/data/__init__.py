"""Records in, batches of global arrays out: sources, order, transforms, mixtures and the loader."""
