"""A worker process of `experiments.tokenize.workers`: it is given a job, and then pieces of it."""

import contextlib
import signal
import sys
from multiprocessing.connection import Connection

from polycom_jax.data.pieces import Job, write_piece


def serve(connection: Connection) -> None:
    """Tokenises what comes, until nothing comes any more."""
    job: Job = connection.recv()
    tokenizer = job.tokenizer()
    while True:
        piece = connection.recv()
        try:
            connection.send((piece, write_piece(job, piece, tokenizer)))
        except (BrokenPipeError, ConnectionResetError):
            return
        except Exception as error:
            connection.send(error)


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the program that has started it
    with contextlib.suppress(EOFError):
        serve(Connection(int(sys.argv[1])))
