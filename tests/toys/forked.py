"""Processes that tests start, forked from a server that has imported once what they need."""

import multiprocessing
from multiprocessing.context import ForkServerContext

METHOD = "forkserver"


def context() -> ForkServerContext:
    """The first to start the server decides what it imports, so all ask for the same."""
    found = multiprocessing.get_context(METHOD)
    found.set_forkserver_preload(["lpo_platform.commands.fit"])
    return found
