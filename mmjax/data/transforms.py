"""Every transform by its name in a config: `data.transforms` names a class that this module
holds."""

from mmjax.data.colour_transforms import (
    ColourJitter, GaussianBlur, Grey, RandAugment, Solarise)
from mmjax.data.image_transforms import (
    CentreCrop, Decode, Flip, Letterbox, Normalise, RandomResizedCrop, Resize, ResizeShort, ToFloat)
from mmjax.data.map_transforms import DecodeDepth, DecodeLabels, DecodeNormals
from mmjax.data.patch_transforms import AspectBucket, CropToPatches, Patchify
from mmjax.data.text_transforms import Keep, Rename, SampleCaption, Tokenise
from mmjax.data.video_transforms import SampleFrames
from mmjax.data.view_transforms import MultiCrop
