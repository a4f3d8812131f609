"""State, step, hooks and evaluation: the parts of the loop in `mmjax/train.py`."""
