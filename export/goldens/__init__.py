"""`python -m mimo_edge.export.goldens OUT_DIR`: makes the goldens that ship with the project."""
