"""Where a clip looks at the picture of an object."""
