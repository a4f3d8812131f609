"""mmjax: multimodal pretraining in JAX. `mmjax --help` is the way in; docs/architecture.md the map."""

__version__ = "0.1.0"


def digest(workdir: str) -> dict:
  """SHA-256 of what the newest checkpoint in `workdir` holds, see `mmjax.checkpoint.digest`."""
  from mmjax.checkpoint import digest as checkpoint_digest
  return checkpoint_digest.digest(workdir)
