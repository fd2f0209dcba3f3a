"""Where documents come from: the built-in corpus, files of every format, folders, and datasets of the Hub."""
