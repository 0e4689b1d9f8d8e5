"""Which inference engine fits this machine and this model, and running it.

hardware.py    what the machine has
model.py       what a model needs; read by checkpoint.py, gguf.py and hub.py
plan.py        the engine, quantisation, parallelism and KV cache that fit
explain.py     its arithmetic, its start command and its settings
launch.py      start it, wait for it, end it
"""
