"""A child that tests kill: it sends so many bytes once it is told to, and a grandchild holds its connection too."""

import argparse
import os
import socket
import sys
import time

from mezzotint.workers.limits import hold_pulse

HELD_S = 5.0  # by the grandchild


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--fd", type=int)
    parser.add_argument("--pulse", type=int)
    parser.add_argument("size", type=int)
    args = parser.parse_args()
    if os.fork() == 0:
        os.close(args.pulse)
        os.close(sys.stderr.fileno())
        time.sleep(HELD_S)
        return
    hold_pulse(args.pulse)
    connection = socket.socket(fileno=args.fd)
    connection.recv(1)
    connection.sendall(bytes(args.size))
    sys.stderr.write("sent\n")
    sys.stderr.flush()
    time.sleep(60)


if __name__ == "__main__":
    main()
