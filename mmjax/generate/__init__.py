"""Decoding: from a trained model to new images and texts. Pure functions."""
