"""Tell images that are not like normal ones, and where, from normal images alone."""
