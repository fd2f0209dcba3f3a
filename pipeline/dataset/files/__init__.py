"""The files of a dataset: how many units of work each holds, how they come about, and what is found in one that is read."""
