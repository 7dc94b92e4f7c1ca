#!/usr/bin/env bash
# pydicom 3.0.2: apply_voi keeps the index into the LUT in the type of the LUT's entries. A valid VOI LUT of 4096 entries of
# 8 bits (PS3.3 C.11.2 allows it) is read modulo 256: a stored value of 2100 gets the entry 52 instead of the entry 2100.
# Seen: [0, 3, 15] where the table says [0, 131, 255].
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet 'pydicom==3.0.2' 'numpy<2.4'
"$folder/venv/bin/python" - <<'PY'
import numpy as np
from pydicom import Dataset
from pydicom.pixels import apply_voi

table = [index // 16 for index in range(4096)]
item = Dataset()
item.add_new("LUTDescriptor", "US", [4096, 0, 8])
item.add_new("LUTData", "US", table)
header = Dataset()
header.VOILUTSequence = [item]
stored = np.array([0, 2100, 4095], np.uint16)
seen, right = apply_voi(stored, header).tolist(), [table[value] for value in stored]
print("apply_voi:", seen, "the table:", right)
assert right == [0, 131, 255]
assert seen == [table[value % 256] for value in stored], "the behaviour has changed"
PY
