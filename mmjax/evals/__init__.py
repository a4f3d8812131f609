"""Evaluators: one file each, named by `evals.NAME` in a config.

A file binds `build` to a frozen dataclass whose fields are the config's keys and whose method
`run(session) -> {metric: float}` does the evaluation. Metric names carry no evaluator name. What a
metric is to be held against stands beside it: `top1`, `top1/chance`; `i2t/R@1/ceiling`.

The session (`mmjax/training/evaluate.py`) gives an evaluator the model and the data:

  batches(stream, batch_size)  dicts of global arrays; every record once; padding is `valid=False`;
                               a stream of None is the run's own evaluation stream
  features(batch, want=())     {name: array} of the modalities that the batch has: one with `image`
                               only gives `image/embed` [B, D] and no `text/embed`. The batch may
                               also be NumPy arrays that are equal on every process
  metrics(batch)               {name: Term}: the objective's own terms and metrics, train=False
  fetch(tree)                  the tree as NumPy arrays, whole, on every process
  save(name, arrays)           keeps {name: NumPy array} for the run report
"""
