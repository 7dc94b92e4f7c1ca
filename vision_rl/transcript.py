"""Gone: the report shows conversations with their pictures, those that tools gave included."""

import sys

if __name__ == "__main__":
    sys.exit("error: transcripts are part of the report now; `python -m vision_rl.report RUN_DIR --steps 40` writes it")
