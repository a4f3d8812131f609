"""Where a ray meets each shape, and the surface's normal there.

Shapes are in their own frame: x, y over the floor and z up, the origin on the floor under the
centre, lengths in units of the object's radius. A ray is an origin (x, y, z) and a unit direction
(x, y, z); each of the six is a float32 scalar or [N], so that one camera origin or one light
direction serves all rays. Distances are float32 [N], infinite where the ray misses.
"""

import numpy as np

CUBE = 0.8                            # half an edge
CYLINDER, CYLINDER_HEIGHT = 0.72, 1.7  # radius, height
CONE, CONE_HEIGHT = 0.95, 2.0
TORUS, TUBE = 0.75, 0.33              # radius of the ring's centre line and of its tube
ARM, THICKNESS = 0.98, 0.31           # of the cross: half length and half thickness of a bar

# A ball around each shape: height of its centre, radius.
BOUNDS = {
  "sphere": (1.0, 1.0), "cube": (0.8, 1.39), "cylinder": (0.85, 1.12), "cone": (0.85, 1.28),
  "torus": (0.33, 1.09), "cross": (0.98, 1.08),
}

_CROSS_BARS = (
  (ARM, THICKNESS, THICKNESS), (THICKNESS, ARM, THICKNESS), (THICKNESS, THICKNESS, ARM))
_TORUS_STEPS = 12    # of sphere tracing; more do not change a 64-pixel picture
_TORUS_TOUCH = 0.004  # distance that counts as a hit
_INFINITE = np.float32(np.inf)
_TINY = np.float32(1e-9)


def intersect(shape, origin, direction):
  """Distance float32 [N] to the first hit in front of the origin, infinite without one."""
  with np.errstate(divide="ignore", invalid="ignore"):
    return _INTERSECT[shape](origin, direction)


def normal(shape, point):
  """Outward unit normal at surface points: float32 [3, N] of float32 [3, N]."""
  return _NORMAL[shape](point)


def _first_positive(near, far, hit):
  """The nearer of two crossings that lies in front, where there is a hit."""
  first = np.where(near > 0, near, far)
  return np.where(hit & (first > 0), first, _INFINITE)


def _sphere(origin, direction):
  (ox, oy, oz), (dx, dy, dz) = origin, direction
  oz = oz - 1
  b = ox * dx + oy * dy + oz * dz
  discriminant = b * b - (ox * ox + oy * oy + oz * oz - 1)
  root = np.sqrt(np.maximum(discriminant, 0))
  return _first_positive(-b - root, root - b, discriminant > 0)


def _box(origin, direction, half, height):
  """Axis-aligned box by slabs: `half` extents around (0, 0, `height`)."""
  near, far = -_INFINITE, _INFINITE
  for o, d, h in zip((origin[0], origin[1], origin[2] - height), direction, half):
    inverse = 1 / np.where(np.abs(d) < _TINY, _TINY, d)
    centre, reach = -o * inverse, h * np.abs(inverse)
    near, far = np.maximum(near, centre - reach), np.minimum(far, centre + reach)
  return _first_positive(near, far, near < far)


def _cube(origin, direction):
  return _box(origin, direction, (CUBE, CUBE, CUBE), CUBE)


def _cross(origin, direction):
  first, second, third = (_box(origin, direction, bar, ARM) for bar in _CROSS_BARS)
  return np.minimum(np.minimum(first, second), third)


def _cylinder(origin, direction):
  (ox, oy, oz), (dx, dy, dz) = origin, direction
  a = np.maximum(dx * dx + dy * dy, _TINY)
  b = ox * dx + oy * dy
  discriminant = b * b - a * (ox * ox + oy * oy - CYLINDER * CYLINDER)
  root = np.sqrt(np.maximum(discriminant, 0))
  inverse = 1 / np.where(np.abs(dz) < _TINY, _TINY, dz)
  low, high = -oz * inverse, (CYLINDER_HEIGHT - oz) * inverse
  near = np.maximum((-b - root) / a, np.minimum(low, high))
  far = np.minimum((root - b) / a, np.maximum(low, high))
  return _first_positive(near, far, (discriminant > 0) & (near < far))


def _cone(origin, direction):
  """The mantle only: the base lies on the floor, where neither camera nor light sees it."""
  (ox, oy, oz), (dx, dy, dz) = origin, direction
  slope = CONE / CONE_HEIGHT
  oz = oz - CONE_HEIGHT  # from the tip, downwards negative: x² + y² = (slope z)²
  a = dx * dx + dy * dy - slope * slope * dz * dz
  a = np.where(np.abs(a) < 1e-6, np.float32(1e-6), a)
  b = ox * dx + oy * dy - slope * slope * oz * dz
  c = ox * ox + oy * oy - slope * slope * oz * oz
  discriminant = b * b - a * c
  root = np.sqrt(np.maximum(discriminant, 0))
  best = _INFINITE
  for t in ((-b - root) / a, (root - b) / a):
    z = oz + t * dz
    valid = (discriminant > 0) & (t > 0) & (z < 0) & (z > -CONE_HEIGHT)
    best = np.minimum(best, np.where(valid, t, _INFINITE))
  return best


def _torus(origin, direction):
  """Sphere tracing (Hart 1996): step by the distance to the surface, which no ray can overshoot."""
  ox, oy, oz, dx, dy, dz = np.broadcast_arrays(*origin, *direction)
  oz = oz - np.float32(TUBE)
  inverse = 1 / np.where(np.abs(dz) < _TINY, _TINY, dz)
  t = np.maximum(-oz * inverse - TUBE * np.abs(inverse), 0)  # where the ray enters |z| <= TUBE
  leaves = -oz * inverse + TUBE * np.abs(inverse)
  for _ in range(_TORUS_STEPS):
    x, y, z = ox + t * dx, oy + t * dy, oz + t * dz
    ring = np.sqrt(x * x + y * y) - np.float32(TORUS)
    distance = np.sqrt(ring * ring + z * z) - np.float32(TUBE)
    t = t + distance
  return np.where((distance < _TORUS_TOUCH) & (t <= leaves + 0.05), t, _INFINITE)


def _sphere_normal(p):
  return np.stack([p[0], p[1], p[2] - 1])


def _box_normal(p, half, height):
  """The axis on which the point is deepest in its slab."""
  scaled = np.stack([p[0] / half[0], p[1] / half[1], (p[2] - height) / half[2]])
  axis = np.abs(scaled).argmax(axis=0)
  columns = np.arange(p.shape[1])
  result = np.zeros_like(p)
  result[axis, columns] = np.sign(scaled[axis, columns])
  return result


def _cube_normal(p):
  return _box_normal(p, (CUBE, CUBE, CUBE), CUBE)


def _cross_normal(p):
  """Of the bar whose surface the point lies on: the one it is least outside of."""
  q = np.abs(np.stack([p[0], p[1], p[2] - ARM]))
  outside = np.stack([np.max(q - np.float32(bar)[:, None], axis=0) for bar in _CROSS_BARS])
  bar = np.abs(outside).argmin(axis=0)
  normals = np.stack([_box_normal(p, half, ARM) for half in _CROSS_BARS])
  return normals[bar, :, np.arange(p.shape[1])].T


def _cylinder_normal(p):
  top = p[2] > CYLINDER_HEIGHT - 1e-3
  side = np.where(top, 0, np.float32(1 / CYLINDER))
  return np.stack([p[0] * side, p[1] * side, top.astype(np.float32)])


def _cone_normal(p):
  radius = np.maximum(np.hypot(p[0], p[1]), _TINY)
  length = np.float32(np.hypot(CONE, CONE_HEIGHT))
  outward = np.float32(CONE_HEIGHT / length) / radius
  return np.stack([p[0] * outward, p[1] * outward, np.full_like(radius, CONE / length)])


def _torus_normal(p):
  radius = np.maximum(np.hypot(p[0], p[1]), _TINY)
  to_ring = 1 - np.float32(TORUS) / radius
  result = np.stack([p[0] * to_ring, p[1] * to_ring, p[2] - np.float32(TUBE)])
  return result / np.maximum(np.sqrt((result * result).sum(axis=0)), _TINY)


_INTERSECT = {"sphere": _sphere, "cube": _cube, "cylinder": _cylinder, "cone": _cone,
              "torus": _torus, "cross": _cross}
_NORMAL = {"sphere": _sphere_normal, "cube": _cube_normal, "cylinder": _cylinder_normal,
           "cone": _cone_normal, "torus": _torus_normal, "cross": _cross_normal}
