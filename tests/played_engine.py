"""A recorded engine as a process of its own: python played_engine.py PORT ENGINE ARM."""

from __future__ import annotations

import sys

from replay import Replay, recording

if __name__ == "__main__":
    Replay(recording(*sys.argv[2:4]), port=int(sys.argv[1])).serve_forever()
