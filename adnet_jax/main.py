"""The main program: flags, logging and nothing else; `train.py` and `evaluate.py` do the work."""
