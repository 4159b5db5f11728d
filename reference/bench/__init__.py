"""Evidence: `python -m reference.bench` prunes, measures, and writes one result file a run."""
