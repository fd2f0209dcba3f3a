"""Work on a cluster: pieces of it in the hands of Ray's workers, and groups of processes that train one model."""
