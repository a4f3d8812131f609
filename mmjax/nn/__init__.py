"""Linen building blocks that know no task. Parameters are float32 and name their axes."""
