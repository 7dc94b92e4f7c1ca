"""The tiny model's warm start for MiniWoB++: `python -m scripts.tiny_models.browser [--output DIR] [--episodes N]`.

Real screenshots of three pages: click-test (one button), click-test-2 (the button with the right word) and
click-button-sequence (one button, then the other). It begins with the shipped tiny checkpoint.

1. *Look*: for each visual token, which buttons it shows, by the word on them, and where in the picture they lie.
2. *Answer*: the box of the button that the text asks for, in the very messages of the episode's loop. The vision tower rests,
   so that each picture goes through it once.
3. *Confuse*: a short phase in which the wrong button, or the wrong half of the page, is mostly the target. Greedy answers are
   then wrong more often than not, and both keep enough probability for the samples of a group to differ.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch.nn import functional
from transformers import AutoProcessor, Qwen2_5_VLForConditionalGeneration

from scripts.tiny_models.model import END, round_weights, save_checkpoint
from scripts.tiny_models.optimizer import adamw, schedule, update
from vision_rl.agent.environment import NEXT
from vision_rl.agent.prompts import GROUNDING_PROMPT
from vision_rl.answers.actions import Action
from vision_rl.answers.parsing import format_boxes
from vision_rl.errors import cli_errors
from vision_rl.models.tokens import forbidden_token_ids
from vision_rl.tasks import get_task
from vision_rl.tiny import checkpoint_dir

PAGES = {"click-test": 1, "click-test-2": 1, "click-button-sequence": 2}
"""The pages of the demo, with the clicks that each takes."""
FIRST_SEED = 20_000_000
"""Beyond those of `data_utils.py episodes`."""
LOOK_STEPS, ANSWER_STEPS, CONFUSE_STEPS = 350, 900, 60
LOOK_RATE, ANSWER_RATE, CONFUSE_RATE = 3e-3, 2.5e-3, 5e-4
BATCH, WARM_UP_STEPS = 32, 40
MIRRORED, OTHER_BUTTON, OTHER_FIRST, SAME_AGAIN = 0.5, 0.68, 0.58, 0.55
"""How often the confused target is the mistake: on the one-button page, the two-button page, and the two clicks in sequence."""
TOKENS = 4
"""Visual tokens along a side: 160 pixels are 112 for the tiny processor, and a token is 28."""
WORDS = ("ONE", "TWO", "Click Me!")
Box = Sequence[float]

_BUTTONS = "[...document.querySelectorAll('#area button')].map(b => [b.textContent.trim(), b.getBoundingClientRect().toJSON()])"


@dataclass
class Episode:
    """An episode's pictures, those of its later turns after right clicks, and its buttons (unit xyxy) by their words."""

    page: str
    text: str
    buttons: dict[str, Box]
    pictures: list[Image.Image]
    features: list[torch.Tensor] = field(default_factory=list)  # (16, hidden) for each picture

    def clickable(self, word: str) -> Box:
        """The button, or the part of it that shows where the other one covers its middle."""
        one, other = self.buttons[word], self.buttons.get("TWO")
        x, y = (one[0] + one[2]) / 2, (one[1] + one[3]) / 2
        if word == "TWO" or other is None or not (other[0] <= x <= other[2] and other[1] <= y <= other[3]):
            return one
        parts = [
            (one[0], one[1], max(one[0], other[0]), one[3]),
            (min(one[2], other[2]), one[1], one[2], one[3]),
            (one[0], one[1], one[2], max(one[1], other[1])),
            (one[0], min(one[3], other[3]), one[2], one[3]),
        ]
        return max(parts, key=lambda part: (part[2] - part[0]) * (part[3] - part[1]))


def record(count: int, progress: Callable[[str], None]) -> list[Episode]:
    """`count` episodes of each page, in a real browser."""
    page = get_task("miniwob").environment.make()
    rng, episodes = random.Random(0), []
    for name, clicks in PAGES.items():
        for seed in range(FIRST_SEED, FIRST_SEED + count):
            seen = page.reset(seed=seed, options={"env": name, "shade": True})
            buttons: dict[str, Sequence[float]] = {
                word: (box["left"] / 160, (box["top"] - 50) / 160, box["right"] / 160, (box["bottom"] - 50) / 160)
                for word, box in page.browser().evaluate(_BUTTONS)
            }
            episode = Episode(name, seen.text, buttons, [seen.pictures[0]])
            if clicks == 2:
                box = episode.clickable("ONE")
                at = [min(max(rng.gauss(0.5, 0.22), 0.02), 0.98) for _ in range(2)]
                point = (box[0] + at[0] * (box[2] - box[0]), box[1] + at[1] * (box[3] - box[1]))
                step = page.step(Action("click", point))
                episode.pictures += step.observation.pictures
            episodes.append(episode)
        progress(f"{name}: {count} episodes")
    page.close()
    return episodes


class Loss:
    """The loss of a batch in parts (student, episodes with lessons, weight), each computed in a thread of its own.

    Steps of so few milliseconds are done sooner by two threads that meet once than by OpenMP's, which meet at every operation.
    """

    def __init__(self, parts: Sequence[tuple[Student, Any, float]]) -> None:
        self.parts, self.value = parts, 0.0

    def backward(self) -> None:
        """As a tensor's."""

        def one(part: tuple[Student, Any, float]) -> float:
            student, pairs, weight = part
            loss = student.part(pairs) * weight
            loss.backward()  # type: ignore[no-untyped-call]
            return loss.item()

        with ThreadPoolExecutor(len(self.parts)) as pool:
            self.value = sum(pool.map(one, self.parts))

    def item(self) -> float:
        """As a tensor's, after `backward`."""
        return self.value


class Student:
    """The model with what its lessons need."""

    def __init__(self, seed: int) -> None:
        torch.manual_seed(seed)
        self.rng = random.Random(seed)
        self.processor = AutoProcessor.from_pretrained(checkpoint_dir())
        self.model = Qwen2_5_VLForConditionalGeneration.from_pretrained(checkpoint_dir(), dtype=torch.float32)
        self.hidden = self.model.config.text_config.hidden_size
        self.image = self.model.config.image_token_id
        self.positions: dict[tuple[int, ...], torch.Tensor] = {}

    def ids(self, text: str) -> list[int]:
        found: list[int] = self.processor.tokenizer(text).input_ids
        return found

    def asked(self, text: str) -> list[int]:
        """The ids of a user's message with one picture, up to where the reply begins."""
        content = [{"type": "image"}, {"type": "text", "text": text}]
        prompt = self.processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
        return self.ids(prompt.replace("<|image_pad|>", "<|image_pad|>" * TOKENS**2))

    def see(self, pictures: Sequence[Image.Image]) -> torch.Tensor:
        """(pictures, 16, hidden): what the vision tower makes of them."""
        inputs = self.processor.image_processor(images=list(pictures), return_tensors="pt")
        seen = self.model.model.visual(inputs["pixel_values"], grid_thw=inputs["image_grid_thw"]).pooler_output
        return seen.view(len(pictures), TOKENS**2, self.hidden)

    def lesson(self, episode: Episode, confused: bool) -> list[tuple[list[int], bool]]:
        """Pieces of token ids, and whether they are to be learnt."""

        def wrong(share: float) -> bool:
            return confused and self.rng.random() < share

        if episode.page == "click-test":
            left, top, right, bottom = episode.buttons["Click Me!"]
            answers: list[Box] = [(1 - right, top, 1 - left, bottom) if wrong(MIRRORED) else (left, top, right, bottom)]
        elif episode.page == "click-test-2":
            answers = [episode.clickable("TWO" if wrong(OTHER_BUTTON) else "ONE")]
        else:
            answers = [episode.clickable("TWO" if wrong(OTHER_FIRST) else "ONE")]
            answers.append(episode.clickable("ONE" if wrong(SAME_AGAIN) else "TWO"))
        pieces = [(self.asked(GROUNDING_PROMPT.format(instruction=episode.text)), False)]
        for number, box in enumerate(answers[: len(episode.pictures)]):
            if number:
                pieces.append((self.ids("\n") + self.asked(NEXT), False))
            pieces.append((self.ids(format_boxes([box], "bbox", 2) + END), True))
        return pieces

    def loss(self, episodes: Sequence[Episode], confused: bool) -> Loss:
        """Cross-entropy of the replies, and a push that keeps the placeholders of pictures out of them.

        Episodes of one picture and of two are a part each, padded to its own length.
        """
        pairs = [(episode, self.lesson(episode, confused)) for episode in episodes]
        split = [[one for one in pairs if len(one[1]) == pieces] for pieces in (2, 4)]
        counts = [sum(len(ids) for _, pieces in part for ids, learn in pieces if learn) for part in split]
        return Loss([(self, part, count / sum(counts)) for part, count in zip(split, counts, strict=True) if part])

    def part(self, pairs: Sequence[tuple[Episode, list[tuple[list[int], bool]]]]) -> torch.Tensor:
        """The mean loss of some episodes with their lessons."""
        episodes, lessons = [episode for episode, _ in pairs], [pieces for _, pieces in pairs]
        longest = max(sum(len(ids) for ids, _ in pieces) for pieces in lessons)
        ids = torch.full((len(lessons), longest), self.processor.tokenizer.pad_token_id)
        mask, labels = torch.zeros_like(ids), torch.full_like(ids, -100)
        positions = torch.zeros(3, *ids.shape, dtype=torch.long)
        for row, (episode, pieces) in enumerate(zip(episodes, lessons, strict=True)):
            whole = torch.tensor([token for piece, _ in pieces for token in piece])
            learnt = torch.tensor([learn for piece, learn in pieces for _ in piece])
            ids[row, : len(whole)], mask[row, : len(whole)] = whole, 1
            labels[row, : len(whole)] = torch.where(learnt, whole, -100)
            key = tuple(len(piece) for piece, _ in pieces)
            if key not in self.positions:
                grids = torch.tensor([[1, 2 * TOKENS, 2 * TOKENS]] * len(episode.pictures))
                kinds = (whole == self.image).long()[None]
                index = self.model.model.get_rope_index(whole[None], mm_token_type_ids=kinds, image_grid_thw=grids)
                self.positions[key] = index[0][:, 0]
            positions[:, row, : len(whole)] = self.positions[key]
        text = self.model.model.language_model
        embedded = text.embed_tokens(ids)
        shown = torch.cat([feature for episode in episodes for feature in episode.features])
        embedded = embedded.masked_scatter((ids == self.image).unsqueeze(-1).expand_as(embedded), shown)
        states = text(inputs_embeds=embedded, position_ids=positions, attention_mask=mask).last_hidden_state[:, :-1]
        wanted = labels[:, 1:]
        logits = self.model.lm_head(states[wanted != -100])
        silent = torch.relu(logits[:, forbidden_token_ids(self.processor)] + 20).mean()
        return 2 * functional.cross_entropy(logits, wanted[wanted != -100]) + silent


def shown_in(box: Box, token: int) -> bool:
    """Whether a visual token shows a sixteenth of itself or more of a box."""
    left, top = token % TOKENS / TOKENS, token // TOKENS / TOKENS
    wide = min(box[2], left + 1 / TOKENS) - max(box[0], left)
    high = min(box[3], top + 1 / TOKENS) - max(box[1], top)
    return wide > 0 and high > 0 and wide * high * TOKENS**2 > 1 / 16


def look(student: Student, episodes: Sequence[Episode], progress: Callable[[str], None]) -> None:
    """The first lesson: a linear reading of each visual token must tell which buttons it shows, and their boxes."""
    head = torch.nn.Linear(student.hidden, 5 * len(WORDS))
    optimizer = adamw([*student.model.model.visual.parameters(), *head.parameters()])
    for step in range(LOOK_STEPS):
        chosen = student.rng.sample(list(episodes), BATCH)
        there, boxes = torch.zeros(BATCH, TOKENS**2, len(WORDS)), torch.zeros(BATCH, TOKENS**2, len(WORDS), 4)
        for row, episode in enumerate(chosen):
            for word, box in episode.buttons.items():
                for token in (token for token in range(TOKENS**2) if shown_in(box, token)):
                    there[row, token, WORDS.index(word)] = 1
                    boxes[row, token, WORDS.index(word)] = torch.tensor(box)
        read = head(student.see([episode.pictures[0] for episode in chosen]))
        away = (read[..., len(WORDS) :].view_as(boxes) - boxes).abs().mean(-1)
        error = (away * there).sum() / there.sum()
        loss = 2 * functional.binary_cross_entropy_with_logits(read[..., : len(WORDS)], there) + 4 * error
        update(optimizer, loss, LOOK_RATE * schedule(step, LOOK_STEPS, WARM_UP_STEPS))
        if step % 50 == 49:
            progress(f"look {step + 1} of {LOOK_STEPS}: loss {loss.item():.3f}, boxes off by {error.item():.3f}")


def answer(student: Student, episodes: Sequence[Episode], progress: Callable[[str], None]) -> None:
    """The other two lessons, over pictures that the resting vision tower has seen once."""
    student.model.model.visual.requires_grad_(False)
    with torch.no_grad():
        for episode in episodes:
            episode.features = list(student.see(episode.pictures))
    optimizer = adamw([parameter for parameter in student.model.parameters() if parameter.requires_grad])
    for step in range(ANSWER_STEPS + CONFUSE_STEPS):
        confused = step >= ANSWER_STEPS
        loss = student.loss(student.rng.sample(list(episodes), BATCH), confused)
        rate = CONFUSE_RATE if confused else ANSWER_RATE * schedule(step, ANSWER_STEPS, WARM_UP_STEPS)
        update(optimizer, loss, rate)
        if step % 50 == 49:
            progress(f"answer {step + 1} of {ANSWER_STEPS + CONFUSE_STEPS}: loss {loss.item():.3f}")
    student.model.model.visual.requires_grad_(True)


def browser_checkpoint_dir() -> Path:
    """The folder of the warm-started checkpoint beside this file."""
    return Path(__file__).resolve().parent / "browser_checkpoint"


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m scripts.tiny_models.browser", description=__doc__)
    parser.add_argument("--output", type=Path, default=browser_checkpoint_dir(), help="folder (default: %(default)s)")
    parser.add_argument("--episodes", type=int, default=1500, help="of each page (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()

    def say(text: str) -> None:
        print(text, flush=True)

    torch.set_num_threads(1)
    with cli_errors():
        episodes = record(args.episodes, say)
        student: Any = Student(args.seed)
        student.model.train()
        look(student, episodes, say)
        answer(student, episodes, say)
        student.model.eval()
        round_weights(student.model)
        save_checkpoint(student.model, student.processor, args.output)
    say(f"wrote {args.output}")


if __name__ == "__main__":
    main()
