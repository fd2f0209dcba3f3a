"""Trainings on Ray: data-parallel processes of one, several side by side, and the desk between them and the driver."""
