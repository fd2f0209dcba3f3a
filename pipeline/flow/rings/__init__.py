"""Which clocks ring at which step of a rollout, and which trajectories jump together: known before the teacher is asked."""
