"""`tsdfm-pipeline generate`: trajectories on Ray."""
