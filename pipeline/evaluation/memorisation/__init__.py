"""How much of some texts stands in what models were trained on: in the corpus, in trajectories. Start at `memory.py`."""
