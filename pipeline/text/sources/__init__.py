"""Where documents come from: the corpora that have a name, files of every format, folders, and datasets of the Hub."""
