"""`tsdfm-pipeline pretrain` and `fit-compass`."""
