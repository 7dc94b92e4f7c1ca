"""Gone: the live page shows more than the terminal view did."""

import sys

if __name__ == "__main__":
    sys.exit("error: the terminal view is gone; `python -m vision_rl.report RUN_DIR --serve` shows a run as it goes on")
