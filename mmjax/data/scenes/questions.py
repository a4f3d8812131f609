"""Questions about a scene with one-word answers, balanced within each type.

Balance: neither the most frequent answer of a type nor the best guess from the question's words
does much better than chance. Yes-no questions toss the answer first, and are only asked where the
scene allows both; counts are thinned to equal frequency. What remains: a held-out pair is never
the answer in train, so "what colour is the cube?" has six answers there, not eight; and in the
compositional split four of the eight colours are more frequent, because six shapes share eight
held-out pairs (the most frequent colour is 16% of the answers, chance is 12.5%).
"""

import itertools

from mmjax.data.scenes import attributes, captions, chance, sample

PER_TYPE = 0.8      # how often a type is tried for a record
FIELDS = ("colour", "shape", "size", "material")
VALUES = {"colour": attributes.COLOURS, "shape": attributes.SHAPES, "size": attributes.SIZES,
          "material": attributes.MATERIALS}
FIELD_WORDS = {"colour": ("colour",), "shape": ("shape",), "size": ("size",),
               "material": ("surface", "material")}
ANSWERS = {"count": captions.NUMBERS[1:], "count_of": captions.NUMBERS[:3],
           "exist": ("yes", "no"), "relation": ("yes", "no"), "compare": ("yes", "no"),
           "more": ("yes", "no"), **VALUES}

# Chance that "how many ... objects are there?" has answer zero, one or two, by what is counted.
# Measured by `python -m mmjax.data.scenes.questions`; `_count_of` keeps each in inverse proportion.
COUNT_OF_RATES = {
  "colour": (0.7555, 0.1924, 0.0427),
  "shape": (0.6872, 0.2354, 0.0606),
  "size": (0.2664, 0.3998, 0.2068),
  "material": (0.4248, 0.3854, 0.1424),
}


def questions(scene, rng):
  """Questions, answers and types: three lists of equal length.

  A type (attributes.QUESTION_TYPES) is asked at most once and left out where the scene does not
  allow a balanced question. The possible answers of each type are `ANSWERS`.
  """
  seen = captions.views(scene)
  asked = []
  for name in attributes.QUESTION_TYPES:
    if not chance.coin(rng, PER_TYPE):
      continue
    pair = _attribute(rng, seen, name) if name in FIELDS else _ASK[name](rng, seen)
    if pair:
      asked.append(pair + (name,))
  return [list(column) for column in zip(*asked)] if asked else [[], [], []]


def _count(rng, seen):
  if not chance.coin(rng, min(sample.COUNT_WEIGHTS) / sample.COUNT_WEIGHTS[len(seen) - 1]):
    return None
  question = chance.pick(rng, (
    "how many objects are there?", "how many things are in the picture?",
    "what is the number of objects?"))
  return question, captions.NUMBERS[len(seen)]


def _count_of(rng, seen):
  field = chance.pick(rng, FIELDS)
  value = chance.pick(rng, VALUES[field])
  number = sum(getattr(view, field) == value for view in seen)
  rates = COUNT_OF_RATES[field]
  if number >= len(rates) or not chance.coin(rng, min(rates) / rates[number]):
    return None
  things = captions.plural(value) if field == "shape" else f"{value} objects"
  question = chance.pick(rng, ("how many {} are there?", "what is the number of {}?"))
  return question.format(things), captions.NUMBERS[number]


def _exist(rng, seen):
  """About a colour and a shape together. The pairs asked for in vain are drawn like the pairs that
  occur: held out as often, and often with the colour of one object and the shape of another."""
  present = [(view.colour, view.shape) for view in seen]
  model = chance.pick(rng, seen)
  if chance.coin(rng):
    pair, answer = (model.colour, model.shape), "yes"
  else:
    kind = attributes.HELD_OUT_LABELS if model.held_out else attributes.SEEN_LABELS
    absent = [(attributes.COLOURS[c], attributes.SHAPES[s]) for c, s in kind]
    absent = [pair for pair in absent if pair not in present]
    crossed = [p for p in absent if p in itertools.product(*zip(*present))]
    pair, answer = chance.pick(rng, crossed if crossed and chance.coin(rng) else absent), "no"
  thing = captions.article(" ".join(pair))
  question = chance.pick(rng, ("is there {}?", "do you see {}?", "does the picture show {}?"))
  return question.format(thing), answer


def _attribute(rng, seen, field):
  """"What colour is the small cube?" """
  view = chance.pick(rng, seen)
  avoid = {field}
  if view.held_out and field in ("colour", "shape"):
    avoid = {"colour", "shape"}  # there one would give the other away
  name = _refer(rng, seen, view, avoid)
  if name is None:
    return None
  forms = ("what {} is {}?", "what is the {} of {}?", "tell me the {} of {}.")
  field_word = chance.pick(rng, FIELD_WORDS[field])
  if field == "material":
    forms = ("what {} does {} have?",) + forms[1:]
  return chance.pick(rng, forms).format(field_word, name), getattr(view, field)


def _relation(rng, seen):
  """"Is the red cube left of the cone?" The same pair with its order tossed."""
  if len(seen) < 2:
    return None
  first, second = chance.shuffled(rng, seen)[:2]
  holds = captions.relation(first, second)
  names = [_refer(rng, seen, view, set(), place=False) for view in (first, second)]
  if not holds or None in names:
    return None
  asked, answer = chance.pick(rng, holds), "yes"
  if chance.coin(rng):
    asked, answer = captions.RELATIONS[asked][1], "no"
  phrase = chance.pick(rng, captions.RELATIONS[asked][0])
  return f"is {names[0]} {phrase} {names[1]}?", answer


def _compare(rng, seen):
  """"Do A and B have the same size?" Only where the scene has an equal and an unequal pair."""
  field = chance.pick(rng, FIELDS)
  pairs = chance.shuffled(rng, itertools.combinations(seen, 2))
  found = {}
  for a, b in pairs:
    same = getattr(a, field) == getattr(b, field)
    if same in found:
      continue
    names = [_refer(rng, seen, view, {field}) for view in (a, b)]
    if None not in names:
      found[same] = names
  if len(found) < 2:
    return None
  same = chance.coin(rng)
  a, b = found[same]
  question = chance.pick(rng, (
    "do {a} and {b} have the same {f}?", "does {a} have the same {f} as {b}?",
    "is the {f} of {a} also that of {b}?"))
  return question.format(a=a, b=b, f=field), "yes" if same else "no"


def _more(rng, seen):
  """"Are there more cubes than cones?" Their order is tossed."""
  field = chance.pick(rng, FIELDS)
  first, second = chance.shuffled(rng, VALUES[field])[:2]
  a, b = (sum(getattr(view, field) == value for view in seen) for value in (first, second))
  if a == b:
    return None
  if field == "shape":
    first, second = captions.plural(first), captions.plural(second)
  else:
    first, second = f"{first} objects", f"{second} objects"
  form = chance.pick(rng, ("are there more {} than {}?", "is the number of {} above that of {}?"))
  return form.format(first, second), "yes" if a > b else "no"


_ASK = {"count": _count, "count_of": _count_of, "exist": _exist, "relation": _relation,
        "compare": _compare, "more": _more}


def _refer(rng, seen, view, avoid, place=True):
  """"the small cube": a phrase that fits this object only, without the fields in `avoid`.

  None when no such phrase exists. With `place` it may be told by its place alone.
  """
  allowed = [field for field in FIELDS if field not in avoid]
  subsets = [s for n in (1, 2, 3, 4) for s in itertools.combinations(allowed, n)]
  phrases = []
  for fields in subsets:
    if any(set(shorter) < set(fields) for shorter in phrases):
      continue  # no words that say nothing new
    twins = sum(all(getattr(o, f) == getattr(view, f) for f in fields) for o in seen)
    if twins == 1:
      phrases.append(fields)
  places = _places(seen, view) if place else []
  if not phrases and not places:
    return None
  if places and (not phrases or chance.coin(rng, 0.25)):
    return chance.pick(rng, places)
  fields = chance.pick(rng, phrases)
  return "the " + captions.noun(rng, view, fields, "shape" if "shape" in fields else "object")


def _places(seen, view):
  """Phrases such as "the leftmost object" that are clearly true of this object."""
  others = [other for other in seen if other is not view]
  if not others:
    return ["the object"]
  phrases = {
    "the leftmost object": all(view.x < o.x - captions.SIDE for o in others),
    "the rightmost object": all(view.x > o.x + captions.SIDE for o in others),
    "the object closest to the camera": all(view.depth < o.depth - captions.DEPTH for o in others),
    "the object farthest away": all(view.depth > o.depth + captions.DEPTH for o in others),
  }
  return [phrase for phrase, true in phrases.items() if true]


def measure_count_rates(scenes=20000):
  """The table `COUNT_OF_RATES`, from the train distribution."""
  totals = {field: [0, 0, 0] for field in FIELDS}
  for index in range(scenes):
    seen = captions.views(sample.sample(0, "rates", index))
    for field in FIELDS:
      for value in VALUES[field]:
        number = sum(getattr(view, field) == value for view in seen)
        if number < 3:
          totals[field][number] += 1 / len(VALUES[field])
  return {f: tuple(round(n / scenes, 4) for n in counts) for f, counts in totals.items()}


if __name__ == "__main__":
  for name, rates in measure_count_rates().items():
    print(f'  "{name}": {rates},')
