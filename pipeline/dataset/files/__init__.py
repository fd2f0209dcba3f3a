"""Files of several units of work: how many, how they come about, and how they are read a unit at a time."""
