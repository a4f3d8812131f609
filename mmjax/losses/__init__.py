"""Pure functions on arrays: one formula, one function, one reference."""
