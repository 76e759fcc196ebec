"""`python -m wmact`."""

import os

# Threads that spin while they wait halve the speed of everything as soon as a second program wants the cores.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

from wmact.cli import main  # noqa: E402 (OpenMP reads its settings when torch is imported)

if __name__ == "__main__":
    main()
