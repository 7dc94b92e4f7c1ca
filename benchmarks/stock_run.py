"""The same training on Agent Lightning's stock settings, for `benchmarks/stack.py`: `agl.VERL`, its daemon, trainer and proxy.

Only what the CPU needs to run at all is taken from this project: the configuration and the shims of verl and vLLM.
Prints its metrics (verl's "console" logger) and writes the time at which the first rollouts are queued to FIRST_ROLLOUTS_PATH.
"""

from __future__ import annotations

import argparse
import os
import sys
import time

STARTED = time.time()

from vision_rl.engine.vllm_cpu import FORK_ENGINE  # noqa: E402

from vision_rl.engine.environment import run_environment  # noqa: E402

ENVIRONMENT = run_environment(cpu=True)
ENVIRONMENT.pop(FORK_ENGINE)
os.environ.update(ENVIRONMENT)

import agentlightning as agl  # noqa: E402
import openai  # noqa: E402
from agentlightning.algorithm.verl import VERL  # noqa: E402
from agentlightning.verl.daemon import AgentModeDaemon  # noqa: E402
from omegaconf import OmegaConf  # noqa: E402

from vision_rl.data.schema import read_rows  # noqa: E402
from vision_rl.engine.config import resolve  # noqa: E402
from vision_rl.messages import image_url, user_message  # noqa: E402
from vision_rl.prompts import VQA_PROMPT  # noqa: E402
from vision_rl.rewards.vqa import vqa_accuracy  # noqa: E402
from vision_rl.tiny import checkpoint_dir, write_tasks  # noqa: E402


class AnnouncedDaemon(AgentModeDaemon):
    """Upstream's, which says when it has queued the first rollouts."""

    announced = False

    async def _async_set_up(self, *args: object, **kwargs: object) -> None:
        await super()._async_set_up(*args, **kwargs)
        if not self.announced:
            self.announced = True
            with open(os.environ["FIRST_ROLLOUTS_PATH"], "w", encoding="utf-8") as file:
                file.write(str(time.time()))


class StockOnCpu(VERL):
    """`agl.VERL` with Ray's logical GPU and the CPU shims."""

    def run(self, train_dataset: object = None, val_dataset: object = None) -> None:
        import ray

        environment = {
            "env_vars": ENVIRONMENT,
            "worker_process_setup_hook": "vision_rl.engine.verl_cpu.apply_without_collecting",
        }
        ray.init(num_cpus=8, num_gpus=1, include_dashboard=False, runtime_env=environment)
        super().run(train_dataset, val_dataset)


@agl.rollout
async def stock_agent(task: dict[str, object], llm: agl.LLM) -> float:
    """The agent as Agent Lightning's examples write it: a client per rollout."""
    client = openai.AsyncOpenAI(base_url=llm.endpoint, api_key="none", timeout=30)
    question = VQA_PROMPT.format(question=task["question"])
    reply = await client.chat.completions.create(
        model=llm.model,
        max_tokens=16,
        messages=[user_message(question, [image_url(str(task["image"]), "file")])],  # type: ignore[list-item]
        **llm.sampling_parameters,
    )
    return vqa_accuracy(reply.choices[0].message.content or "", task["answers"])  # type: ignore[arg-type]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--data", required=True)
    parser.add_argument("overrides", nargs="*")
    args = parser.parse_args()
    rows = read_rows(write_tasks(args.data, "vqa")["train"])
    tasks = [{"image": r["image_paths"][0], "question": r["question"], "answers": r["answers"]} for r in rows]
    resolved = resolve("cpu", args.overrides, task="vqa", model=checkpoint_dir(), media_root="/")
    algorithm = VERL.__new__(StockOnCpu)
    agl.Algorithm.__init__(algorithm)
    algorithm.config = OmegaConf.create(resolved.verl)
    algorithm.trainer_cls, algorithm.daemon_cls = None, AnnouncedDaemon
    trainer = agl.Trainer(n_runners=2, algorithm=algorithm)
    trainer.fit(stock_agent, train_dataset=tasks, val_dataset=tasks[:4])


if __name__ == "__main__":
    with open(os.environ["FIRST_ROLLOUTS_PATH"] + ".started", "w", encoding="utf-8") as started:
        started.write(str(STARTED))
    main()
    sys.exit(0)
