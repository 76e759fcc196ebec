"""What a worker may run into."""

import os
import time


def serve(what: str, *arguments: object) -> object:
    """Do as told."""
    if what == "raise":
        raise ValueError("first line\nand the last")
    if what == "die":
        os._exit(3)
    if what == "hang":
        time.sleep(600)
    return os.getpid(), what, arguments
