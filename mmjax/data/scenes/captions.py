"""Sentences about a scene, from a word or two to everything in it.

All text is lower case. A `View` is an object as language needs it: names instead of labels, and
where it appears in the picture.
"""

import dataclasses

from mmjax.data.scenes import attributes, chance

SYNONYM = 0.2  # how often another word stands for a shape, size or material
SHAPE_WORDS = {"sphere": ("ball",), "cube": ("block", "box"), "cylinder": ("drum", "can"),
               "cone": ("cone",), "torus": ("ring", "donut"), "cross": ("plus",)}
SIZE_WORDS = {"small": ("little", "tiny"), "large": ("big",)}
MATERIAL_WORDS = {"matte": ("dull",), "metal": ("shiny", "metallic"), "striped": ("banded",)}
PLURALS = {"box": "boxes", "torus": "tori", "cross": "crosses", "plus": "pluses"}
NUMBERS = ("zero", "one", "two", "three", "four", "five")
COLOURS, SHAPES = attributes.COLOURS, attributes.SHAPES

SIDE = 0.15        # of half a picture: two objects closer than this are not left or right
DEPTH = 0.6        # metres: two objects closer than this are not one in front of the other
CENTRE = 0.14      # of half a picture: how far from the middle still counts as the middle
DARK, LIGHT = 0.42, 0.55  # mean brightness that makes a floor or wall "dark" or "light"

RELATIONS = {  # name: (phrasings, opposite)
  "left": (("to the left of", "left of", "on the left side of"), "right"),
  "right": (("to the right of", "right of", "on the right side of"), "left"),
  "front": (("in front of", "closer to the camera than", "nearer than"), "behind"),
  "behind": (("behind", "farther away than", "farther from the camera than"), "front"),
}


@dataclasses.dataclass(frozen=True)
class View:
  """An object's names, and its place: x, y in [-1, 1] (right, up), depth in metres."""
  colour: str
  shape: str
  size: str
  material: str
  x: float
  y: float
  depth: float
  apparent: float             # radius over half the picture's side
  held_out: bool


def views(scene):
  """The `View` of each object, in the scene's order."""
  result = []
  for i, thing in enumerate(scene.things):
    x, y, depth = scene.camera.project(thing.position)
    result.append(View(
      COLOURS[thing.colour], SHAPES[thing.shape], attributes.SIZES[thing.size],
      attributes.MATERIALS[thing.material], x, y, depth,
      scene.camera.focal * thing.radius / depth, i == scene.held_out))
  return result


def captions(scene, rng):
  """One caption of each of `attributes.CAPTION_KINDS`, in that order.

    short       colour and shape of the object that fills most of the picture
    objects     colour and shape of every object
    attributes  size, material, colour and shape of every object
    relations   colour and shape of every object, and how they stand to each other
    detailed    all of this, with the room and the light
    counts      how many objects of each shape
  """
  seen = views(scene)
  largest = max(seen, key=lambda view: view.apparent)
  short = article(noun(rng, largest, ("colour",)))
  return [
    chance.pick(rng, ("{}", "{}", "a picture of {}", "there is {}")).format(short),
    _frame(rng).format(_list_all(rng, seen, ("colour",))),
    _frame(rng).format(_list_all(rng, seen, ("size", "material", "colour"))),
    _relations(rng, seen),
    _detailed(rng, scene, seen),
    _counts(rng, seen),
  ]


def noun(rng, view, fields, head="shape"):
  """E.g. "large red ball": the given fields in English order, then the shape or "object"."""
  words = []
  if "size" in fields:
    words.append(word(rng, view.size, SIZE_WORDS))
  if "material" in fields:
    words.append(word(rng, view.material, MATERIAL_WORDS))
  if "colour" in fields:
    words.append(view.colour)
  words.append(word(rng, view.shape, SHAPE_WORDS) if head == "shape" else head)
  return " ".join(words)


def word(rng, name, synonyms):
  """The name itself, or now and then a synonym."""
  return chance.pick(rng, synonyms[name]) if chance.coin(rng, SYNONYM) else name


def article(phrase):
  """The phrase with "a" or "an" before it."""
  return ("an " if phrase[0] in "aeiou" else "a ") + phrase


def plural(name):
  """Plural of a shape's word."""
  return PLURALS.get(name, name + "s")


def join(parts):
  """"a", "a and b", "a, b and c"."""
  return parts[0] if len(parts) == 1 else ", ".join(parts[:-1]) + " and " + parts[-1]


def relation(a, b):
  """Names of `RELATIONS` that hold of a to b; empty when they stand too close to say."""
  names = []
  if abs(a.x - b.x) > SIDE:
    names.append("left" if a.x < b.x else "right")
  if abs(a.depth - b.depth) > DEPTH:
    names.append("front" if a.depth < b.depth else "behind")
  return names


def _frame(rng):
  return chance.pick(rng, (
    "{}", "{}", "{}", "a picture of {}", "an image of {}", "a scene with {}", "there is {}"))


def _list_all(rng, seen, fields):
  return join([article(noun(rng, view, fields)) for view in chance.shuffled(rng, seen)])


def _place(view):
  """Where in the picture, e.g. "upper left"."""
  side = "left" if view.x < -CENTRE else "right" if view.x > CENTRE else ""
  level = "upper" if view.y > CENTRE else "lower" if view.y < -CENTRE else ""
  if level and not side:
    return "top" if level == "upper" else "bottom"
  return f"{level} {side}".strip() or "middle"


def _relations(rng, seen, fields=("colour",)):
  """A chain: the first object, then each one in relation to the one before."""
  order = chance.shuffled(rng, seen)
  text = article(noun(rng, order[0], fields))
  if len(order) == 1:
    where = chance.pick(rng, ("in the {} of the picture", "at the {} of the image", "at the {}"))
    return f"{text} {where.format(_place(order[0]))}"
  for i, (before, view) in enumerate(zip(order, order[1:])):
    names = relation(before, view)
    phrase = chance.pick(rng, RELATIONS[chance.pick(rng, names)][0]) if names else "next to"
    link = "is" if i == 0 else ", which is"
    text += f"{' ' if i == 0 else ''}{link} {phrase} {article(noun(rng, view, fields))}"
  return text


def _detailed(rng, scene, seen):
  room = scene.room
  count = "one object" if len(seen) == 1 else f"{NUMBERS[len(seen)]} objects"
  things = _listed_with_places(rng, seen)
  floor = _surface(attributes.FLOORS[room.floor], room.floor_colours, "floor")
  wall = _surface(attributes.WALLS[room.wall], room.wall_colours, "wall")
  light = {"left": "the light comes from the left", "right": "the light comes from the right",
           "behind": "the light comes from behind the camera"}[room.light_from]
  opening = chance.pick(rng, (
    "{count} on {floor} in front of {wall}: {things}. {light}.",
    "{things} {stand} on {floor} before {wall}. {light}.",
    "{floor} with {things}. {wall} behind, and {light}.",
    "in front of {wall}, on {floor}: {things}. {light}."))
  stand = "stands" if len(seen) == 1 else "stand"
  return opening.format(
    count=count, floor=floor, wall=wall, things=things, light=light, stand=stand)


def _listed_with_places(rng, seen):
  fields = ("size", "material", "colour")
  if len(seen) > 1 and chance.coin(rng):
    return _relations(rng, seen, fields)
  return join([f"{article(noun(rng, view, fields))} at the {_place(view)}"
               for view in chance.shuffled(rng, seen)])


def _surface(kind, colours, name):
  brightness = sum(map(sum, colours)) / 6
  tone = "dark" if brightness < DARK else "light" if brightness > LIGHT else "grey"
  return f"a {tone} {kind} {name}"


def _counts(rng, seen):
  """E.g. "three objects: two cubes and one cone"."""
  parts = []
  for shape in chance.shuffled(rng, sorted({view.shape for view in seen})):
    number = sum(view.shape == shape for view in seen)
    name = word(rng, shape, SHAPE_WORDS)
    parts.append(f"{NUMBERS[number]} {name if number == 1 else plural(name)}")
  if len(parts) == 1:
    return parts[0]
  total = NUMBERS[len(seen)]
  return chance.pick(rng, ("{} objects: {}", "{} things, {}")).format(total, join(parts))
