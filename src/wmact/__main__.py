"""`python -m wmact`."""

import os

# Threads that spin while they wait halve the speed of everything as soon as a second program wants the cores.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # vLLM's NUMA binding warns on every machine

from wmact.cli import main

if __name__ == "__main__":
    main()
