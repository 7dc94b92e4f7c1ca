"""Why a rollout was not trained on: every reason in rollouts.jsonl, with its usual cause and cure.

docs/troubleshooting.md shows this table; `python -m tests.failures` writes it there.
"""

from __future__ import annotations

from enum import StrEnum


class NotTrained(StrEnum):
    """A reason: its value is the word in rollouts.jsonl. Below it one class for rollouts, for samples, and for groups."""

    happened: str
    cause: str
    cure: str

    def __new__(cls, word: str, happened: str, cause: str, cure: str) -> NotTrained:
        """The three texts are sentences, in Markdown."""
        member = str.__new__(cls, word)
        member._value_ = word
        member.happened, member.cause, member.cure = happened, cause, cure
        return member


class RolloutFailure(NotTrained):
    """The rollout itself failed, after its last attempt: `failure` in rollouts.jsonl. It counts as reward 0."""

    AGENT_ERROR = (
        "agent_error",
        "The agent raised an exception.",
        "A fault of the agent or of its row, such as a picture that cannot be opened.",
        "Read `reason`. The traceback is in the terminal of the run or of the worker. "
        "`python vqa_agent.py` (or another agent's file) runs it alone.",
    )
    MODEL_CALL = (
        "model_call",
        "A call to the model failed, and the agent's client gave up.",
        "The model server refused the request, was too slow, or died.",
        "Read `reason`: it has the server's status and message. `agent.timeout_seconds` bounds a call; the server's own "
        "log is in `logs/`.",
    )
    NO_REWARD = (
        "no_reward",
        "The agent emitted no reward, or one that is not a finite number.",
        "A reward function that returned nothing, NaN or an infinity.",
        'Call `agl.emit_reward({...}, primary_key="reward")` once, as the last thing.',
    )
    NO_TRACE = (
        "no_trace",
        "The rollout ended well, but none of its model calls was traced.",
        "The agent called a model server without the LLM proxy, or its client answered from a cache of its own.",
        "Call `llm.endpoint`; in a worker, the path that came with the claim. Switch the client's cache off "
        "(`docs/add-a-task.md` names the switches).",
    )
    TIMEOUT = (
        "timeout",
        "The rollout took longer than `app.rollouts.timeout_seconds`, over all its turns.",
        "A busy model server, or very long replies.",
        "Use fewer runners per server, a smaller `agent.max_tokens`, or a larger limit.",
    )
    UNRESPONSIVE = (
        "unresponsive",
        "Nothing was heard of the rollout for `app.rollouts.unresponsive_seconds`.",
        "Its runner or worker died, most often for want of memory.",
        "Look at the memory of that machine. The limit must exceed `agent.timeout_seconds`.",
    )
    DEADLINE = (
        "deadline",
        "The trainer stopped waiting, after no rollout at all had ended for as long as one may take.",
        "No runner or worker is left.",
        "Look at the output of the runners or workers.",
    )


class SampleDrop(NotTrained):
    """A sample of a rollout that succeeded could not become a row of the batch: `dropped` in rollouts.jsonl."""

    EMPTY = (
        "empty",
        "The reply, or its prompt, has no tokens.",
        "The model ended its reply at once.",
        "Nothing, if it is rare. A model that often does so was trained with another chat template.",
    )
    NO_LOGPROBS = (
        "no_logprobs",
        "The trace has not one log-probability for each token of the reply.",
        "A model server older than vLLM 0.10.2.",
        "Use the pinned vLLM.",
    )
    PROMPT_TOO_LONG = (
        "prompt_too_long",
        "The prompt has more tokens than `data.max_prompt_length`. It is never cut: a cut could run through a picture.",
        "A large picture, many pictures, or a long question.",
        "Raise `data.max_prompt_length`, or lower `agent.max_pixels`.",
    )
    UNREADABLE_IMAGE = (
        "unreadable_image",
        "A picture of the trace could not be opened for the update.",
        "The file was changed or removed during the run.",
        "Restore the file that `reason` names; `python data_utils.py verify --file F` finds others.",
    )
    IMAGE_TOKENS_DISAGREE = (
        "image_tokens_disagree",
        "The trace has another number of picture tokens than the trainer's processor makes of the same pictures.",
        "The model server processes pictures in another way: another processor, other pixel limits.",
        "Set pixel limits by `agent.max_pixels` alone. `--doctor` compares the two sides.",
    )


class GroupDrop(NotTrained):
    """A whole group was not trained on, although this rollout of it may be fine: `dropped` in rollouts.jsonl."""

    NO_SPREAD = (
        "group_filtered",
        "All rollouts of the group earned the same, and another group was drawn in its place.",
        "Dynamic sampling at work: such a group carries no gradient.",
        "Nothing. If most groups go, the rows are too easy or too hard; see the alarm about equal groups.",
    )
    SURPLUS = (
        "group_surplus",
        "The batch was full before this group was needed.",
        "Dynamic sampling draws two groups for each that it filters.",
        "Nothing.",
    )
    STALE = (
        "group_stale",
        "The group is older than `trainer.v1.sampler.max_off_policy_threshold` weight updates.",
        "In an asynchronous mode the rollouts are slower than the updates.",
        "Use more servers, fewer rollouts under way (`num_warmup_batches`), or a larger threshold.",
    )
    RUN_ENDED = (
        "run_ended",
        "The run ended before the step that would have trained on the group.",
        "An asynchronous mode rolls out ahead; or an error ended the run.",
        "Nothing: `--resume` asks the same questions again.",
    )


NO_FAULT = (GroupDrop.NO_SPREAD, GroupDrop.SURPLUS, GroupDrop.RUN_ENDED)
"""What dynamic sampling is there for, and what any end of a run leaves."""
