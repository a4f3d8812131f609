"""How many records evaluators take and show: what is checked alike in all of them."""


def check(evaluator, least: int = 1) -> None:
  """Raises ValueError at `max_records`, and `show` where there is one, of an evaluator.

  Args:
    least: fewest records of which its figures can be made.
  """
  if evaluator.max_records is not None and evaluator.max_records < least:
    raise ValueError(f"max_records: must be at least {least}, or None for all, not {evaluator.max_records}")
  if getattr(evaluator, "show", 0) < 0:
    raise ValueError(f"show: must be at least 0, not {evaluator.show}")
