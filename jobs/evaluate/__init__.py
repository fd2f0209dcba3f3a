"""`tsdfm-pipeline evaluate`: what models' texts are worth."""
