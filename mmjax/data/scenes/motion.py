"""Short clips of a scene: one object or the camera moves evenly along a straight line.

The path's middle is a scene of sample.py, and where a path lies does not depend on the way it is
gone: every clip to the left has a twin to the right, which is the same clip backwards. So the way
is seen in the order of the pictures alone; a model that averages over time is at chance there.
"""

import dataclasses
import math

from mmjax.data.scenes import attributes, chance, sample

# Length of a path seen from the side, over half the picture's side: 5 to 8 of 32 pixels.
SHIFT = (0.30, 0.50)
# Along the line of sight a metre changes the picture less: the camera looks down by 18 to 38
# degrees, whose sine is about a half.
SIGHT_SHIFT = 2.0
CENTRE_EDGE = 0.85  # the centres of all objects stay in this part of the picture
WALL_GAP = 1.2      # radii that an object keeps from the wall, as in sample.py


@dataclasses.dataclass(frozen=True)
class Motion:
  """What moves, where to, and how far.

  Attributes:
    moves: label of attributes.MOVES.
    direction: label of attributes.DIRECTIONS.
    thing: index of the object that moves, or -1 for the camera.
    path: metres (x, y, z) from the first picture to the last.
  """
  moves: int
  direction: int
  thing: int
  path: tuple

  def at(self, scene, time):
    """The scene at a time in [-0.5, 0.5]; at 0 it is `scene`."""
    step = [time * p for p in self.path]
    if self.thing < 0:
      camera = scene.camera
      target = tuple(a + b for a, b in zip(camera.target, step))
      return dataclasses.replace(scene, camera=dataclasses.replace(camera, target=target))
    things = list(scene.things)
    thing = things[self.thing]
    position = tuple(a + b for a, b in zip(thing.position, step))
    things[self.thing] = dataclasses.replace(thing, position=position)
    return dataclasses.replace(scene, things=tuple(things))


def times(frames):
  """The times of the pictures of a clip, from -0.5 to 0.5."""
  return [i / (frames - 1) - 0.5 for i in range(frames)]


def sample_clip(seed, split, index, frames, attempt=0):
  """The scenes of clip `index` of a split, a function of the arguments only.

  The labels depend on `attempt` as little as the scene's attributes do: a path that does not fit is
  no reason for another direction.

  Returns:
    (list of `frames` sample.Scene, Motion), or None if the path of this attempt does not fit: an
    object would leave the picture, meet another or pass through the wall.
  """
  scene = sample.sample(seed, split, index, attempt)
  what = chance.stream(seed, split, index, "motion")
  moves = int(what.random() * len(attributes.MOVES))
  direction = int(what.random() * len(attributes.DIRECTIONS))
  thing = int(what.random() * len(scene.things))
  thing = thing if attributes.MOVES[moves] == "object" else -1
  length = chance.uniform(chance.stream(seed, split, index, "path", attempt), *SHIFT)
  motion = Motion(moves, direction, thing, _path(scene, thing, direction, length))
  scenes = [motion.at(scene, time) for time in times(frames)]
  return (scenes, motion) if all(_fits(each, thing) for each in scenes) else None


def _path(scene, thing, direction, length):
  """Metres (x, y, z) that show as `length` half pictures."""
  camera = scene.camera
  right, _, forward = camera.axes
  over_floor = (math.cos(camera.yaw), math.sin(camera.yaw), 0.0)
  depth = camera.project(scene.things[thing].position)[2] if thing >= 0 else camera.distance
  metres = length * depth / camera.focal
  name = attributes.DIRECTIONS[direction]
  if name in ("left", "right"):
    metres, axis = (-metres if name == "left" else metres), right
  else:  # nearer: an object comes towards the camera, the camera goes forward
    metres *= SIGHT_SHIFT * (1 if name == "nearer" else -1)
    axis = forward if thing < 0 else tuple(-a for a in over_floor)
  return tuple(metres * a for a in axis)


def _fits(scene, moving):
  """Whether all objects are seen, and the moving one stands free."""
  for thing in scene.things:
    x, y, _ = scene.camera.project(thing.position)
    if max(abs(x), abs(y)) > CENTRE_EDGE:
      return False
  if moving < 0:
    return True
  own = scene.things[moving]
  along = (math.cos(scene.camera.yaw), math.sin(scene.camera.yaw))
  to_wall = scene.room.wall_distance - sum(a * b for a, b in zip(along, own.position))
  if to_wall < WALL_GAP * own.radius:
    return False
  reach = lambda thing: sample.REACH[attributes.SHAPES[thing.shape]] * thing.radius
  return all(math.dist(own.position[:2], other.position[:2])
             > sample.MIN_GAP * (reach(own) + reach(other))
             for i, other in enumerate(scene.things) if i != moving)
