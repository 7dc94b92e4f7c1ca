#!/usr/bin/env bash
# Trainer and worker in two network namespaces of this machine, as on two machines: all rollouts are done by worker.py, which
# reaches nothing of the trainer but its LLM proxy. Needs root (ip netns). Usage: benchmarks/two_namespaces.sh STEPS RUN_DIR
# With CUT_SECONDS the network between them swallows every packet for so long, after the second step.
set -euo pipefail
steps=${1:-20} run_dir=${2:-runs/two-namespaces} python=${PYTHON:-.venv/bin/python}
export VISION_RL_TOKEN=${VISION_RL_TOKEN:-$(head -c 24 /dev/urandom | base64 | tr -d '+/=')}
trap 'kill ${worker:-} ${cut:-} 2>/dev/null || true; ip netns del vrl-trainer 2>/dev/null || true; ip netns del vrl-worker 2>/dev/null || true' EXIT

ip netns add vrl-trainer
ip netns add vrl-worker
ip link add vrl0 netns vrl-trainer type veth peer name vrl1 netns vrl-worker
ip -n vrl-trainer addr add 10.77.0.1/24 dev vrl0
ip -n vrl-worker addr add 10.77.0.2/24 dev vrl1
for side in trainer worker; do ip -n vrl-$side link set lo up; done
ip -n vrl-trainer link set vrl0 up
ip -n vrl-worker link set vrl1 up

# The worker is started first and waits. http: it has the pictures sent to it, as a machine without the trainer's disk would.
ip netns exec vrl-worker env OPENAI_BASE_URL=http://10.77.0.1:8080/v1 OPENAI_API_KEY="$VISION_RL_TOKEN" \
  "$python" worker.py --task vqa --concurrency 4 --images http &
worker=$!
if [ -n "${CUT_SECONDS:-}" ]; then
  rm -rf "$run_dir"
  (
    until [ "$(wc -l <"$run_dir/metrics.jsonl" 2>/dev/null || echo 0)" -ge 3 ]; do sleep 0.2; done  # validation and two steps
    ip -n vrl-worker link set vrl1 down
    sleep "$CUT_SECONDS"
    ip -n vrl-worker link set vrl1 up
  ) &
  cut=$!
fi
ip netns exec vrl-trainer "$python" train_agent.py --task vqa --llm-proxy --host 10.77.0.1 --n-runners 0 \
  --max-steps "$steps" --run-dir "$run_dir" --overwrite
kill -INT $worker
wait $worker
