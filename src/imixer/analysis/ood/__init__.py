"""Tell images of the kind a run was trained on from others."""
