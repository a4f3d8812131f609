"""Forward passes and loss terms on the Objective contract: one file a family."""
