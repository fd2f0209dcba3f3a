"""One loop, and what is fitted with it: teachers, compasses, students."""
