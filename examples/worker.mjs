// A worker in JavaScript: claims rollouts of a trainer elsewhere, asks the model, reports rewards (docs/workers.md).
//
//     OPENAI_BASE_URL=http://trainer:8080/v1 OPENAI_API_KEY=<token> node examples/worker.mjs [rollouts at a time]
//
// Node 20 and nothing else. It needs no pin of the trainer's: so work frameworks that cannot be installed beside them.

import os from "node:os";

const root = process.env.OPENAI_BASE_URL.replace(/\/(v1\/?)?$/, "");
const token = process.env.OPENAI_API_KEY ?? "none";
const name = `${os.hostname()}-${process.pid}-js`;
let stopping = false;
process.on("SIGINT", () => (stopping = true));

const send = (path, body, key = token, signal = undefined) =>
  fetch(root + path, {
    method: body ? "POST" : "GET",
    headers: { authorization: `Bearer ${key}`, "content-type": "application/json" },
    body: body && JSON.stringify(body),
    signal,
  });

async function picture({ rollout_id }, index) {
  const reply = await send(`/v1/rollouts/${rollout_id}/images/${index}`);
  if (!reply.ok) throw new Error(`picture ${index}: HTTP ${reply.status}`);
  const data = Buffer.from(await reply.arrayBuffer()).toString("base64");
  return { type: "image_url", image_url: { url: `data:${reply.headers.get("content-type")};base64,${data}` } };
}

// The agent: one call with the rollout's own key, at the address that all rollouts share. 1 for an accepted answer.
async function reward(rollout, signal) {
  const { task, model, api_key, sampling_parameters } = rollout;
  const pictures = await Promise.all(task.image_paths.map((_, index) => picture(rollout, index)));
  const content = [...pictures, { type: "text", text: `${task.question}\nAnswer with one word.` }];
  const body = { model, max_tokens: task.settings.max_tokens, ...sampling_parameters, messages: [{ role: "user", content }] };
  const reply = await send("/v1/chat/completions", body, api_key, signal);
  const answer = await reply.json();
  if (!reply.ok) throw new Error(answer.error.message);
  const text = (answer.choices[0].message.content ?? "").trim().toLowerCase();
  return Number(task.answers.some((accepted) => accepted.toLowerCase() === text));
}

async function work(rollout) {
  const { rollout_id, attempt_id } = rollout;
  const identity = { rollout_id, attempt_id };
  const given = new AbortController();
  const alive = setInterval(async () => {
    const reply = await send("/v1/rollouts/heartbeat", identity).catch(() => null);
    if (reply?.status === 404 || (reply?.ok && !(await reply.json()).alive)) given.abort();
  }, 10_000);
  const report = await reward(rollout, AbortSignal.any([given.signal, AbortSignal.timeout(1000 * (rollout.timeout_seconds ?? 3600))]))
    .then((value) => ({ reward: value, components: { accuracy: value } }))
    .catch((error) => ({ failure: `${error.name}: ${error.message}` }));
  clearInterval(alive);
  if (!given.signal.aborted) await send("/v1/rollouts/report", { ...identity, ...report });
}

async function loop() {
  while (!stopping) {
    const reply = await send("/v1/rollouts/claim", { worker_id: name, wait_seconds: 2 }).catch(() => null);
    if (reply?.status === 401) throw new Error("the trainer refuses the key; set OPENAI_API_KEY to the token that it printed");
    if (reply?.status === 200) await work(await reply.json());
    else if (reply?.status !== 204) await new Promise((resolve) => setTimeout(resolve, 1000)); // it is away
  }
}

await Promise.all(Array.from({ length: Number(process.argv[2] ?? 4) }, loop));
