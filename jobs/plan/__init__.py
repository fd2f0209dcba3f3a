"""`--plan` of every command: what a run will make, how long it will take, and what it will cost."""
