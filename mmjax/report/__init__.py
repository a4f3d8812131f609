"""What a run tells: metrics files, TensorBoard events and the console."""
