"""Evaluators: one file each, named by `evals.NAME` in a config.

A file binds `build` to a frozen dataclass whose fields are the config's keys and whose method
`run(session) -> {metric: float}` does the evaluation. Metric names carry no evaluator name. What a
metric is to be held against stands beside it: `top1`, `top1/chance`; `i2t/R@1/ceiling`. The fields
`data`, `train` and `reference` are streams, which the config gives like the run's own `data`.

An evaluator may also have `check(session)`, which is called before anything is trained and raises
ConfigError at a setting that cannot work.

The session (`mmjax/training/evaluate.py`) gives an evaluator the model and the data:

  stream(stream)               the stream itself; for None the run's own evaluation stream
  batches(stream, batch_size)  dicts of global arrays; every record once; padding is `valid=False`;
                               None as above
  abstract_batch(stream, batch_size)
                               shapes and dtypes of these batches
  features(batch, want=())     {name: array} of the modalities that the batch has: one with `image`
                               only gives `image/embed` [B, D] and no `text/embed`. The batch may
                               also be NumPy arrays that are equal on every process
  encoder(path)                features(batch, want=()) of the image encoder of another checkpoint
  generate(batch, **how)       what the objective makes of a batch, see `Objective.generate`
  metrics(batch)               {name: Term}: the objective's own terms and metrics, train=False
  fetch(tree)                  the tree as NumPy arrays, whole, on every process
  save(name, arrays)           keeps {name: NumPy array} for the run report
  error(key, what)             a ConfigError that names `evals.NAME.key`, to be raised

What is kept lies in `<workdir>/evals/<step>/<evaluator>-<name>.npz`, without pickles. A file is
left out where there is nothing to show, and an array where it is said to be optional.

`neighbours`: a handful Q of queries each way and the best K = 5 of what they found.
  pictures     uint8 [P, h, w, 3]  thumbnails; the arrays below name them by position
  tokens       int32 [N, L]        captions, -1 is padding
  captions     str [N]             the same as text; optional: the tokenizer may be unknown
  t2i_query    int32 [Q]           position in `tokens`
  t2i_found    int32 [Q, K]        positions in `pictures`, best first
  t2i_score    float32 [Q, K]      cosine of query and found
  t2i_right    bool [Q, K]         whether what was found belongs to the query
  t2i_answer   int32 [Q]           position in `pictures` of what was to be found
  t2i_rank     float32 [Q]         its rank among all, 1 is first; a fraction where scores tie
  i2t_...                          the same the other way: queries in `pictures`, the rest in
                                   `tokens` (the answer is the best of the picture's captions)

`classes`: of everything that classifies, C classes.
  confusion    int64 [C, C]        records, true class by predicted class
  class_count  int64 [C]           records of a class
  class_top1   float64 [C]         their accuracy, NaN for a class without records
  classes      str [C]             names; optional

`mistakes`: the first wrong ones of everything that classifies, at most 16.
  pictures     uint8 [M, h, w, 3]  thumbnails
  label        int32 [M]           true class
  guess        int32 [M]           predicted class

`reconstructions`: pictures that a model makes, beside those it was given.
  pictures     uint8 [R, S, h, w, 3]  S = 2: given, made; S = 3: given, what was seen of it, made.
                                   Of clips some frames side by side

`generated`: pictures that a model makes, beside given, true or other ones.
  pictures     uint8 [R, S, h, w, 3]
  captions     str [S] or [R, S]   what each is
  texts        str [R]             texts that were given or made; optional

`attention`, `feature_pca`: what the patches of a few pictures say.
  pictures     uint8 [R, S, h, w, 3]  the picture, and S - 1 pictures of its patches
  captions     str [S]             what each is
"""
