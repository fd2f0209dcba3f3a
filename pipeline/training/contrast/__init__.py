"""What compasses that set text against the teacher's are fitted to, `nce` and `contrast`, and how well they tell both."""
