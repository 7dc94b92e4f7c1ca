#!/usr/bin/env bash
# ensemble-boxes 1.0.9: weighted_boxes_fusion merges two boxes of one model (here: one reader of a radiograph) into one, as
# soon as they overlap by iou_thr. RadVLM fuses VinDr-CXR's readers so, at 0.1: a mass drawn inside an opacity of the same
# class by a single reader, IoU 0.25, becomes one box that is neither.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet 'ensemble-boxes==1.0.9' 'numpy<2.4'
"$folder/venv/bin/python" - <<'PY'
from ensemble_boxes import weighted_boxes_fusion

one_reader = [[0.1, 0.1, 0.5, 0.5], [0.2, 0.2, 0.4, 0.4]]
boxes, _, _ = weighted_boxes_fusion([one_reader, []], [[1, 1], []], [[0, 0], []], iou_thr=0.1)
print("one reader drew 2 boxes; fused:", [[round(float(number), 2) for number in box] for box in boxes])
assert len(boxes) == 1 and abs(float(boxes[0][0]) - 0.15) < 1e-6, "the behaviour has changed"
PY
