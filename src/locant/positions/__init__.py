"""How position acts: one file per mathematical idea."""
