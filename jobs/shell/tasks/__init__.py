"""Work of the library, done as Ray tasks."""
