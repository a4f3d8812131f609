"""Draw a scene: a ray caster in NumPy, with shadows, highlights and smooth edges.

Every pixel is traced through its centre; depth, normals and segmentation come from these rays, so
no label is a blend of two. Pixels whose colour differs from a neighbour's are then traced four
times more and their colours averaged (Whitted's adaptive sampling, 1980).
"""

import dataclasses
import functools

import numpy as np

from mmjax.data.scenes import attributes, shapes

RGB = {  # of the painted objects, in [0, 1]
  "red": (0.86, 0.07, 0.09), "orange": (1.0, 0.50, 0.03), "yellow": (0.97, 0.90, 0.10),
  "green": (0.08, 0.62, 0.14), "cyan": (0.08, 0.80, 0.82), "blue": (0.10, 0.20, 0.90),
  "purple": (0.58, 0.12, 0.72), "white": (0.97, 0.97, 0.97),
}
STRIPE_PERIOD = 0.45   # of the striped material: height of a pair of stripes over the radius
STRIPE_SHADE = 0.45    # brightness of its dark stripes
LAMPS = 3              # lamps around the horizon that metal mirrors
EDGE = 0.10            # colour difference between neighbours that calls for smoothing
OFFSET = 0.02          # metres off the surface at which shadow rays start
_WALL, _FLOOR = 0, 1   # labels of attributes.SEMANTIC; objects count on from 2


@dataclasses.dataclass
class Picture:
  """What the camera sees. S is the picture's side, N the number of objects.

  Attributes:
    rgb: uint8 [S, S, 3].
    depth: float32 [S, S], metres along the optical axis.
    normals: float32 [S, S, 3], unit, in camera axes: x right, y up, z towards the camera.
    semantic: uint8 [S, S], labels of attributes.SEMANTIC.
    instance: uint8 [S, S], 0 for the room, 1 + i for object i.
    visible: float32 [N], the part of each object's pixels that nothing hides.
  """
  rgb: np.ndarray
  depth: np.ndarray
  normals: np.ndarray
  semantic: np.ndarray
  instance: np.ndarray
  visible: np.ndarray


def render(scene, size):
  """The `Picture` of a scene, `size` pixels a side."""
  axes = np.float32(scene.camera.axes)                       # [3 axes, 3 coordinates]
  rays = _rays(scene, _pixel_centres(size))                  # [3, S*S]
  distance, surface, normal, covered = _trace(scene, rays)
  colour = _shade(scene, rays, distance, surface, normal)    # [3, S*S]
  rough = _rough(colour.reshape(3, size, size)).ravel().nonzero()[0]
  if rough.size:
    _put(colour, rough, _smooth(scene, rough, size))
  counts = np.bincount(surface, minlength=2 + len(scene.things))[2:]
  labels = np.array([_WALL, _FLOOR] + [2 + thing.shape for thing in scene.things], np.uint8)
  camera_normal = (axes * np.float32([[1], [1], [-1]])) @ normal
  return Picture(
    rgb=(colour.T.reshape(size, size, 3) * 255 + 0.5).astype(np.uint8),
    depth=(distance * (axes[2] @ rays)).reshape(size, size),
    normals=camera_normal.T.reshape(size, size, 3),
    semantic=labels[surface].reshape(size, size),
    instance=np.maximum(surface - 1, 0).astype(np.uint8).reshape(size, size),
    visible=(counts / np.maximum(covered, 1)).astype(np.float32),
  )


@functools.lru_cache(maxsize=4)
def _pixel_centres(size):
  """Picture coordinates (x right, y up, in [-1, 1]) of every pixel's centre: float32 [2, S*S]."""
  line = ((np.arange(size) + 0.5) * (2 / size) - 1).astype(np.float32)
  x, y = np.meshgrid(line, -line)
  return np.stack([x.ravel(), y.ravel()])


def _rays(scene, points):
  """Unit directions [3, N] in world coordinates through picture coordinates [2, N]."""
  right, up, forward = np.float32(scene.camera.axes)
  rays = np.stack([right, up], axis=1) @ points + np.float32(scene.camera.focal) * forward[:, None]
  return rays / np.sqrt((rays * rays).sum(axis=0))


def _rough(colour):
  """Pixels that differ from their right or lower neighbour, and those neighbours: bool [S, S]."""
  rough = np.zeros(colour.shape[1:], bool)
  across = np.abs(colour[:, :, 1:] - colour[:, :, :-1]).max(axis=0) > EDGE
  down = np.abs(colour[:, 1:] - colour[:, :-1]).max(axis=0) > EDGE
  rough[:, 1:] |= across
  rough[:, :-1] |= across
  rough[1:] |= down
  rough[:-1] |= down
  return rough


def _smooth(scene, pixels, size):
  """Mean colour [3, N] of a 2 x 2 grid of rays in each of the pixels [N]."""
  step = np.float32(0.5 / size)
  offsets = step * np.float32([[-1, -1, 1, 1], [-1, 1, -1, 1]])
  points = _columns(_pixel_centres(size), pixels)[..., None] + offsets[:, None, :]
  rays = _rays(scene, points.reshape(2, -1))
  distance, surface, normal, _ = _trace(scene, rays)
  return _shade(scene, rays, distance, surface, normal).reshape(3, -1, 4).mean(axis=2)


def _trace(scene, rays):
  """First surface on each ray from the camera.

  Returns:
    distance float32 [N] metres; surface int64 [N] (0 wall, 1 floor, 2 + i object i); normal
    float32 [3, N] in world axes; covered int [objects]: rays that meet each object at all.
  """
  origin = np.float32(scene.camera.position)
  along = np.float32([np.cos(scene.camera.yaw), np.sin(scene.camera.yaw), 0])
  wall = (np.float32(scene.room.wall_distance) - along @ origin) / (along @ rays)
  floor = np.where(rays[2] < -1e-6, -origin[2] / np.minimum(rays[2], -1e-6), np.inf)
  surface = (floor < wall).astype(np.int64)
  distance = np.minimum(floor, wall).astype(np.float32)
  normal = np.where(surface == _FLOOR, np.float32([[0], [0], [1]]), -along[:, None])
  covered = []
  for i, thing in enumerate(scene.things):
    near = _near(thing, origin, rays).nonzero()[0]
    some = _columns(rays, near)
    shape, start = attributes.SHAPES[thing.shape], _into(thing, origin)
    inner = _turn(thing, some)
    reach = shapes.intersect(shape, start, inner)  # in radii
    covered.append(int(np.isfinite(reach).sum()))
    closer = (reach * np.float32(thing.radius) < distance[near]).nonzero()[0]
    hit, reach = near[closer], reach[closer]
    distance[hit] = reach * np.float32(thing.radius)
    surface[hit] = 2 + i
    points = start[:, None] + reach * _columns(inner, closer)
    _put(normal, hit, _turn(thing, shapes.normal(shape, points), back=True))
  return distance, surface, normal, covered


def _near(thing, origin, rays):
  """Rays [N] from one point that pass through the ball around the object."""
  to_centre, radius = _ball(thing)
  to_centre = to_centre - origin
  along = to_centre @ rays
  return (along > 0) & (along * along > to_centre @ to_centre - radius * radius)


def _ball(thing):
  """A ball that holds the object: centre [3] and radius, metres."""
  height, radius = shapes.BOUNDS[attributes.SHAPES[thing.shape]]
  x, y, _ = thing.position
  return np.float32([x, y, height * thing.radius]), np.float32(radius * thing.radius)


def _into(thing, point):
  """World points [3, ...] in the object's own frame, in radii (shapes.py)."""
  x, y, _ = thing.position
  base = np.float32([x, y, 0])
  return _turn(thing, (point.T - base).T) / np.float32(thing.radius)


def _turn(thing, vectors, back=False):
  """World directions [3, ...] turned into the object's frame, or back."""
  c, s = np.float32(np.cos(thing.yaw)), np.float32(np.sin(thing.yaw))
  s = -s if back else s
  turn = np.array([[c, s, 0], [-s, c, 0], [0, 0, 1]], np.float32)
  return turn @ vectors


def _shade(scene, rays, distance, surface, normal):
  """Colour in [0, 1], float32 [3, N]: ambient, Lambert and highlight terms, with cast shadows."""
  room = scene.room
  light = np.float32(room.light)
  points = np.float32(scene.camera.position)[:, None] + distance * rays
  facing = light @ normal
  lit = np.where(_shadowed(scene, points + OFFSET * normal, facing > 0), 0, np.maximum(facing, 0))
  sky = 0.65 + 0.35 * normal[2]                     # more ambient light from above
  brightness = np.float32(room.ambient) * sky + np.float32(room.light_power) * lit
  colour = _albedo(scene, points, surface) * brightness.astype(np.float32)
  for i, thing in enumerate(scene.things):
    if attributes.MATERIALS[thing.material] == "metal":
      own = (surface == 2 + i).nonzero()[0]
      if own.size:
        _put(colour, own,
             _metal(scene, thing, _columns(rays, own), _columns(normal, own), lit[own]))
  return np.clip(colour, 0, 1)


def _shadowed(scene, points, candidates):
  """Which points [3, N] an object hides from the light: bool [N]; only `candidates` are asked."""
  light = np.float32(scene.room.light)
  hidden = np.zeros(points.shape[1], bool)
  along, square = light @ points, (points * points).sum(axis=0)
  for thing in scene.things:
    centre, radius = _ball(thing)
    ahead = light @ centre - along
    gap = square - 2 * (centre @ points) + centre @ centre - ahead * ahead  # squared, to the ray
    asked = (candidates & ~hidden & (gap < radius * radius) & (ahead > -radius)).nonzero()[0]
    if asked.size:
      start, direction = _into(thing, _columns(points, asked)), _turn(thing, light)
      hits = shapes.intersect(attributes.SHAPES[thing.shape], start, direction)
      hidden[asked] = np.isfinite(hits)
  return hidden


def _albedo(scene, points, surface):
  """Paint of every point: float32 [3, N]. Each surface has two colours and a pattern's share."""
  room = scene.room
  share = np.zeros(len(surface), np.float32)
  floor, wall = (surface == _FLOOR).nonzero()[0], (surface == _WALL).nonzero()[0]
  share[floor] = _floor_pattern(room, _columns(points[:2], floor))
  share[wall] = _wall_pattern(scene, _columns(points, wall))
  first, second = ([room.wall_colours[k], room.floor_colours[k]] for k in (0, 1))
  for i, thing in enumerate(scene.things):
    paint = np.array(RGB[attributes.COLOURS[thing.colour]])
    first.append(paint)
    second.append(paint * STRIPE_SHADE)
    if attributes.MATERIALS[thing.material] == "striped":
      own = (surface == 2 + i).nonzero()[0]
      height = points[2, own] / np.float32(thing.radius)
      share[own] = _part(height / np.float32(STRIPE_PERIOD)) >= 0.5
  first, second = np.float32(first).T, np.float32(second).T
  return _columns(first, surface) + _columns(second - first, surface) * share


def _floor_pattern(room, points):
  """Share of the second floor colour at points [2, N]: float [N] in [0, 1]."""
  c, s = np.float32(np.cos(room.floor_angle)), np.float32(np.sin(room.floor_angle))
  u = (c * points[0] + s * points[1]) / np.float32(room.floor_period)
  v = (c * points[1] - s * points[0]) / np.float32(room.floor_period)
  kind = attributes.FLOORS[room.floor]
  if kind == "checkered":
    return _odd(np.floor(u) + np.floor(v))
  if kind == "striped":
    return _odd(np.floor(2 * u))
  if kind == "tiled":
    return ((_part(u) < 0.1) | (_part(v) < 0.1)).astype(np.float32)
  if kind == "speckled":
    grain = np.sin(np.floor(8 * u) * 12.9898 + np.floor(8 * v) * 78.233) * 437.585
    return (_part(grain) > 0.7).astype(np.float32)
  return np.zeros_like(u)


def _wall_pattern(scene, points):
  """Share of the second wall colour at points [3, N]: float [N] in [0, 1]."""
  room, right = scene.room, np.float32(scene.camera.axes[0])
  u = (right @ points) / np.float32(room.wall_period)
  v = points[2] / np.float32(room.wall_period)
  kind = attributes.WALLS[room.wall]
  if kind == "shaded":
    return np.clip(v / 4, 0, 1)
  if kind == "panelled":
    return _odd(np.floor(u))
  if kind == "brick":
    shift = _odd(np.floor(2 * v)) / 2
    return ((_part(2 * v) < 0.18) | (_part(u + shift) < 0.1)).astype(np.float32)
  return np.zeros_like(u)


def _metal(scene, thing, rays, normal, lit):
  """Polished, tinted metal: it mirrors a bright sky with lamps all around, and a dark floor."""
  mirrored = rays - 2 * (rays * normal).sum(axis=0) * normal
  up = np.clip(4 * mirrored[2], -1, 1)                                   # a soft horizon
  lamps = np.cos(LAMPS * np.arctan2(mirrored[1], mirrored[0]))
  sky = 0.62 + 0.24 * up + 0.3 * lamps
  flash = np.clip(np.float32(scene.room.light) @ mirrored, 0, 1) * (lit > 0)
  for _ in range(3):
    flash = flash * flash  # to the eighth power
  flash = flash * flash * flash
  paint = np.float32(RGB[attributes.COLOURS[thing.colour]])[:, None]
  return (paint * (0.85 * sky + 0.35 * lit) + 0.9 * flash).astype(np.float32)


# NumPy's indexing of columns and its remainder take ten times as long as these.

def _columns(array, index):
  """array[:, index] of a short stack of long rows."""
  return np.stack([row[index] for row in array])


def _put(array, index, values):
  """array[:, index] = values."""
  for row, value in zip(array, values):
    row[index] = value


def _part(x):
  """x modulo 1."""
  return x - np.floor(x)


def _odd(x):
  """x modulo 2, of whole numbers."""
  return x - 2 * np.floor(x / 2)
