"""What a scene is made of: the names, in label order, of every class of the `scenes` dataset.

Label i of a field is the i-th name here. The order is part of the dataset's format: changing it
needs a new `VERSION` in builder.py.
"""

COLOURS = ("red", "orange", "yellow", "green", "cyan", "blue", "purple", "white")
SHAPES = ("sphere", "cube", "cylinder", "cone", "torus", "cross")
SIZES = ("small", "large")
MATERIALS = ("matte", "metal", "striped")
FLOORS = ("plain", "checkered", "striped", "tiled", "speckled")
WALLS = ("plain", "shaded", "panelled", "brick")

# Classes of the semantic map; the instance map has 0 for the room and 1 + i for object i.
SEMANTIC = ("wall", "floor") + SHAPES

# Of clips (motion.py): what moves, and where to as the camera sees it.
MOVES = ("object", "camera")
DIRECTIONS = ("left", "right", "nearer", "farther")

# Colour-shape pairs of the compositional split, one of each colour. They occur nowhere else, and
# every colour and every shape still occurs in train in other pairs.
HELD_OUT = (
  ("red", "sphere"), ("orange", "cone"), ("yellow", "cube"), ("green", "torus"),
  ("cyan", "cylinder"), ("blue", "cross"), ("purple", "cube"), ("white", "cone"),
)
HELD_OUT_LABELS = tuple((COLOURS.index(c), SHAPES.index(s)) for c, s in HELD_OUT)
SEEN_LABELS = tuple(
  (c, s) for c in range(len(COLOURS)) for s in range(len(SHAPES)) if (c, s) not in HELD_OUT_LABELS
)

SPLITS = ("train", "validation", "test", "compositional")
MAX_OBJECTS = 5

# The captions of a record, in this order; captions.py says what each holds.
CAPTION_KINDS = ("short", "objects", "attributes", "relations", "detailed", "counts")
# Those that name the colour and the shape of every object: fit for contrastive training.
COMPLETE_CAPTIONS = ("objects", "attributes", "relations", "detailed")

QUESTION_TYPES = (
  "count", "count_of", "exist", "colour", "shape", "size", "material", "relation", "compare", "more"
)
