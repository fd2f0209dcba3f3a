"""`tsdfm-pipeline inspect`: what is in a dataset."""
