"""Models by their published names, each built from the parts of `locant.nn`."""
