"""`tsdfm-pipeline distill`: a student from frozen shards, on Ray Train."""
