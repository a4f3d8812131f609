"""The distribution of scenes: which objects stand where, seen by which camera, in which room.

A `Scene` describes; render.py draws it; captions.py and questions.py talk about it. Units are
metres; the world has z up and the floor at z = 0. A moving scene is a sequence of `Scene`s of which
each differs from the one before by `dataclasses.replace`.
"""

import dataclasses
import math

from mmjax.data.scenes import attributes, chance

# How often a scene has 1, 2, ... 5 objects. Single objects are frequent: shapes are learnt on them.
COUNT_WEIGHTS = (0.36, 0.22, 0.16, 0.14, 0.12)
# Radius of a large object over half the picture's side, by the number of objects.
APPARENT_RADIUS = ((0.60, 0.72), (0.42, 0.50), (0.36, 0.44), (0.33, 0.40), (0.31, 0.37))
RADIUS = (0.7, 1.0)  # metres, small and large
RADIUS_JITTER = 0.05
REPEAT = 0.35  # how often an object takes its shape or its colour from an earlier one

# By shape, in units of the object's radius: height of the centre, and reach over the floor.
CENTRE = {"sphere": 1.0, "cube": 0.8, "cylinder": 0.85, "cone": 0.85, "torus": 0.33, "cross": 0.98}
REACH = {"sphere": 1.0, "cube": 1.13, "cylinder": 0.72, "cone": 0.95, "torus": 1.08, "cross": 1.03}

NEAREST, FARTHEST = 0.8, 1.35  # depth of an object over the distance to the target
EDGE = 0.97  # objects keep inside this part of the picture, corners perhaps excepted
PLACES_TRIED = 30  # positions tried for one object before the whole layout starts again
MIN_GAP = 1.08  # distance on the floor over the sum of two reaches
MIN_SCREEN_GAP = 0.6  # distance on the picture over the sum of two apparent radii: some overlap


@dataclasses.dataclass(frozen=True)
class Thing:
  """One object; `colour`, `shape`, `size`, `material` are labels of attributes.py."""
  colour: int
  shape: int
  size: int
  material: int
  radius: float               # metres; the shape fills about a ball of this radius
  yaw: float                  # radians about the vertical through its centre
  position: tuple             # metres (x, y, z) of its centre


@dataclasses.dataclass(frozen=True)
class Camera:
  """A pinhole camera that looks at `target`; the picture is square."""
  target: tuple               # metres (x, y, z)
  distance: float             # metres to the target
  yaw: float                  # radians; direction of view over the floor
  pitch: float                # radians below the horizontal
  focal: float                # focal length over half the picture's side

  @property
  def axes(self):
    """Unit vectors (right, up, forward) in world coordinates."""
    cy, sy = math.cos(self.yaw), math.sin(self.yaw)
    cp, sp = math.cos(self.pitch), math.sin(self.pitch)
    return (sy, -cy, 0.0), (cy * sp, sy * sp, cp), (cy * cp, sy * cp, -sp)

  @property
  def position(self):
    """Metres (x, y, z)."""
    return tuple(t - self.distance * f for t, f in zip(self.target, self.axes[2]))

  def project(self, point):
    """Picture coordinates of a world point.

    Returns:
      (x, y, depth): x to the right and y up, both in [-1, 1] inside the picture, and the distance
      along the optical axis in metres.
    """
    offset = [p - o for p, o in zip(point, self.position)]
    right, up, depth = (sum(a * b for a, b in zip(offset, axis)) for axis in self.axes)
    return self.focal * right / depth, self.focal * up / depth, depth

  def unproject(self, x, y, height):
    """The world point at picture coordinates (x, y) and `height` metres; None above the horizon."""
    right, up, forward = self.axes
    ray = [self.focal * f + x * r + y * u for f, r, u in zip(forward, right, up)]
    if ray[2] > -1e-3:
      return None
    origin = self.position
    t = (height - origin[2]) / ray[2]
    return tuple(o + t * d for o, d in zip(origin, ray))


@dataclasses.dataclass(frozen=True)
class Room:
  """Floor, wall and light; kinds are labels of attributes.py, colours RGB in [0, 1]."""
  floor: int
  floor_colours: tuple
  floor_angle: float          # radians, of the floor's pattern
  floor_period: float         # metres
  wall: int
  wall_colours: tuple
  wall_period: float          # metres
  wall_distance: float        # metres from the world's origin, along the camera's yaw
  light: tuple                # unit vector towards the light
  light_from: str             # "left", "right" or "behind": where the light is, for the camera
  light_power: float
  ambient: float


@dataclasses.dataclass(frozen=True)
class Scene:
  """Everything that a picture of the scene shows. `held_out`: index of the object whose
  colour-shape pair is held out of train, or -1."""
  things: tuple
  camera: Camera
  room: Room
  held_out: int = -1


def sample(seed, split, index, attempt=0):
  """Scene `index` of a split: a function of its arguments only.

  Attributes do not depend on `attempt`; layout, camera and room do, so that a caller who rejects a
  layout (an object too hidden) does not bias what the scenes hold.
  """
  what = chance.stream(seed, split, index, "objects")
  where = chance.stream(seed, split, index, "layout", attempt)
  labels, held_out = _labels(what, split)
  radii = [RADIUS[size] * chance.uniform(what, 1 - RADIUS_JITTER, 1 + RADIUS_JITTER)
           for _, _, size, _ in labels]
  shrink, positions = 1.0, None
  while positions is None:
    camera = _camera(where, len(labels), shrink)
    positions = _positions(where, camera, labels, radii)
    shrink *= 0.96  # too crowded: step back a little
  things = tuple(
    Thing(*label, radius, chance.uniform(where, 0, 2 * math.pi), position)
    for label, radius, position in zip(labels, radii, positions))
  return Scene(things, camera, _room(where, camera, things), held_out)


def _labels(rng, split):
  """(colour, shape, size, material) of each object, and which object holds a held-out pair."""
  count = 1 + _weighted(rng, COUNT_WEIGHTS)
  held_out = int(rng.random() * count) if split == "compositional" else -1
  pairs = []
  for i in range(count):
    if i == held_out:
      # The shape first: two shapes have two held-out colours, and all shapes stay equally likely.
      shape = int(rng.random() * len(attributes.SHAPES))
      pairs.append(chance.pick(rng, [p for p in attributes.HELD_OUT_LABELS if p[1] == shape]))
      continue
    choices = attributes.SEEN_LABELS
    if pairs and chance.coin(rng, REPEAT):
      field, earlier = int(rng.random() * 2), chance.pick(rng, pairs)
      choices = [p for p in choices if p[field] == earlier[field]]
    pairs.append(chance.pick(rng, choices))
  sizes, materials = range(len(attributes.SIZES)), range(len(attributes.MATERIALS))
  return [(c, s, chance.pick(rng, sizes), chance.pick(rng, materials)) for c, s in pairs], held_out


def _weighted(rng, weights):
  """An index, chosen with the given probabilities (which sum to 1)."""
  left = rng.random()
  for i, weight in enumerate(weights[:-1]):
    left -= weight
    if left < 0:
      return i
  return len(weights) - 1


def _camera(rng, count, shrink):
  focal = 1 / math.tan(chance.uniform(rng, math.radians(16), math.radians(24)))
  apparent = chance.uniform(rng, *APPARENT_RADIUS[count - 1]) * shrink
  return Camera(
    target=(chance.uniform(rng, -0.5, 0.5), chance.uniform(rng, -0.5, 0.5), 0.6),
    distance=focal * RADIUS[1] / apparent,
    yaw=chance.uniform(rng, -math.pi, math.pi),
    pitch=math.radians(chance.uniform(rng, 18, 38)),
    focal=focal,
  )


def _positions(rng, camera, labels, radii):
  """Where the objects stand: inside the picture, apart on the floor, not too hidden. None: full."""
  placed = []  # (position, reach, picture x, picture y, apparent radius)
  for (_, shape, _, _), radius in zip(labels, radii):
    shape = attributes.SHAPES[shape]
    for _ in range(PLACES_TRIED):
      new = _place(rng, camera, CENTRE[shape] * radius, REACH[shape] * radius, radius)
      if new and all(_apart(new, old) for old in placed):
        placed.append(new)
        break
    else:
      return None
  return [place[0] for place in placed]


def _place(rng, camera, height, reach, radius):
  """A place on the floor that lies in the picture, or None."""
  margin = camera.focal * radius / camera.distance
  x = chance.uniform(rng, margin - 1, 1 - margin)
  y = chance.uniform(rng, margin - 1, 1 - margin)
  point = camera.unproject(x, y, height)
  if point is None:
    return None
  depth = camera.project(point)[2]
  apparent = camera.focal * radius / depth
  inside = max(abs(x), abs(y)) + apparent * max(reach / radius, 1) < EDGE
  if not inside or not NEAREST < depth / camera.distance < FARTHEST:
    return None
  return point, reach, x, y, apparent


def _apart(a, b):
  floor = math.dist(a[0][:2], b[0][:2]) > MIN_GAP * (a[1] + b[1])
  return floor and math.dist(a[2:4], b[2:4]) > MIN_SCREEN_GAP * (a[4] + b[4])


def _room(rng, camera, things):
  side = chance.uniform(rng, -80, 80)  # degrees of the light to the right of the camera's back
  azimuth = camera.yaw + math.pi + math.radians(side)
  elevation = math.radians(chance.uniform(rng, 38, 68))
  along = (math.cos(camera.yaw), math.sin(camera.yaw))
  farthest = max(t.position[0] * along[0] + t.position[1] * along[1] + 1.2 * t.radius
                 for t in things)
  return Room(
    floor=int(rng.random() * len(attributes.FLOORS)),
    floor_colours=_muted_pair(rng),
    floor_angle=chance.uniform(rng, 0, math.pi),
    floor_period=chance.uniform(rng, 0.9, 1.8),
    wall=int(rng.random() * len(attributes.WALLS)),
    wall_colours=_muted_pair(rng),
    wall_period=chance.uniform(rng, 0.7, 1.4),
    wall_distance=farthest + chance.uniform(rng, 0.3, 5.0),
    light=(math.cos(azimuth) * math.cos(elevation), math.sin(azimuth) * math.cos(elevation),
           math.sin(elevation)),
    light_from="right" if side > 25 else "left" if side < -25 else "behind",
    light_power=chance.uniform(rng, 0.62, 0.82),
    ambient=chance.uniform(rng, 0.32, 0.42),
  )


def _muted_pair(rng):
  """Two shades of one muted hue: rooms never show the saturated colours of the objects."""
  level, contrast = chance.uniform(rng, 0.28, 0.62), chance.uniform(rng, 0.12, 0.22)
  tint = [chance.uniform(rng, -0.05, 0.05) for _ in range(3)]
  return tuple(tuple(min(max(v + t, 0.0), 1.0) for t in tint) for v in (level, level + contrast))
