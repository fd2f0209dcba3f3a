"""`tsdfm-pipeline ablate`: a sweep of students over frozen trajectories."""
