"""One file a kind of source; each binds `build`. A source has `__len__`, `__getitem__(i) -> dict`, `digest`."""
