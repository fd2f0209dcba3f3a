"""`tsdfm-pipeline distill`: a student from frozen shards."""
