"""Bundle -> smaller bundle, with a report of what it cost. Arrives with quantisation; see the README."""
