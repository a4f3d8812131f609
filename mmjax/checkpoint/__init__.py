"""Save, restore and digest the training state (Orbax underneath)."""
