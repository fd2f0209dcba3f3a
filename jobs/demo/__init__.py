"""`tsdfm-pipeline demo`: the whole story on what ships with the package."""
