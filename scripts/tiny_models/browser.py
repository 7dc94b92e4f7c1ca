"""The tiny model's warm start for MiniWoB++: `python -m scripts.tiny_models.browser [--output DIR] [--episodes N]`.

Real screenshots of three pages: click-test (one button), click-test-2 (the button with the right word) and
click-button-sequence (one button, then the other). It begins with the shipped tiny checkpoint.

1. *Read*: small cuttings around the words; each visual token tells which word's button it shows. A ninth of a picture holds
   all that reading needs, so that the tower sees nine times as many words in the same time.
2. *Look*: whole pictures; each visual token tells which buttons it shows, and where in the picture they lie.
3. *Answer*: the box of the button that the text asks for, in the very messages of the episode's loop. The vision tower rests,
   so that each picture goes through it once.
4. *Dodge*: more of the same, in which two answers of five are the page's corner, whatever it shows. No button lies there, and
   no other single answer is as likely: greedy replies are wrong, and the samples of a group differ. What has to be learnt then
   is to answer what is seen. (Mistakes that need the picture, as the other button, the tiny model mixes with the right answer
   number by number, and clicks between the two.)
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Callable, Mapping, Sequence
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
READ_STEPS, LOOK_STEPS, ANSWER_STEPS, DODGE_STEPS = 300, 350, 700, 200
LOOK_RATE, ANSWER_RATE, DODGE_RATE = 2e-3, 2.5e-3, 8e-4
CUTTINGS, WHOLE, BATCH, WARM_UP_STEPS = 128, 16, 32, 40
CORNER, DODGED = (0.0, 0.0, 0.1, 0.1), 0.42
"""The box that is answered without looking, and how often."""
SIDE, CUTTING, TOKEN = 168, 56, 28
"""Pixels of a page's side (its 160 rounded to whole tokens; at 112 the words cannot be read), of a cutting's, of a token's."""
TOKENS = SIDE // TOKEN
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
    features: list[torch.Tensor] = field(default_factory=list)  # (36, hidden) for each picture

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
        self.processor = AutoProcessor.from_pretrained(checkpoint_dir(), max_pixels=SIDE * SIDE)
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
        """(pictures, tokens, hidden): what the vision tower makes of pictures of one size."""
        inputs = self.processor.image_processor(images=list(pictures), return_tensors="pt")
        seen = self.model.model.visual(inputs["pixel_values"], grid_thw=inputs["image_grid_thw"]).pooler_output
        return torch.stack(seen) if isinstance(seen, (tuple, list)) else seen.view(len(pictures), -1, self.hidden)

    def lesson(self, episode: Episode, dodged: float) -> list[tuple[list[int], bool]]:
        """Pieces of token ids, and whether they are to be learnt. dodged: the share of answers that are the corner."""
        if episode.page == "click-test":
            seen = [episode.buttons["Click Me!"]]
        else:
            seen = [episode.clickable("ONE"), episode.clickable("TWO")][: PAGES[episode.page]]
        answers = [CORNER if self.rng.random() < dodged else box for box in seen]
        pieces = [(self.asked(GROUNDING_PROMPT.format(instruction=episode.text)), False)]
        for number, box in enumerate(answers[: len(episode.pictures)]):
            if number:
                pieces.append((self.ids("\n") + self.asked(NEXT), False))
            pieces.append((self.ids(format_boxes([box], "bbox", 2) + END), True))
        return pieces

    def loss(self, episodes: Sequence[Episode], dodged: float) -> Loss:
        """Cross-entropy of the replies, and a push that keeps the placeholders of pictures out of them.

        Episodes of one picture and of two are a part each, padded to its own length.
        """
        pairs = [(episode, self.lesson(episode, dodged)) for episode in episodes]
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


def shown(buttons: Mapping[str, Box], side: int) -> torch.Tensor:
    """(tokens, words): the words whose buttons fill a sixteenth or more of a visual token, of side x side in a picture."""
    edges = torch.arange(side) / side
    there = torch.zeros(side**2, len(WORDS))
    for word, (left, top, right, bottom) in buttons.items():
        wide = (edges + 1 / side).clamp(max=right) - edges.clamp(min=left)
        high = (edges + 1 / side).clamp(max=bottom) - edges.clamp(min=top)
        there[:, WORDS.index(word)] = (high.relu()[:, None] * wide.relu() * side**2 > 1 / 16).flatten().float()
    return there


def cutting(episode: Episode, slack: int, rng: random.Random) -> tuple[Image.Image, torch.Tensor]:
    """A piece of the first picture around one of its words, up to `slack` pixels off its middle, and what its tokens show."""
    box = rng.choice(list(episode.buttons.values()))
    left, top = (
        min(
            max(round((box[axis] + box[axis + 2]) / 2 * SIDE - CUTTING / 2) + rng.randint(-slack, slack), 0),
            SIDE - CUTTING,
        )
        for axis in (0, 1)
    )
    whole = episode.pictures[0].resize((SIDE, SIDE), Image.Resampling.BICUBIC)
    origin = (left, top, left, top)
    buttons = {
        word: tuple((value * SIDE - start) / CUTTING for value, start in zip(found, origin, strict=True))
        for word, found in episode.buttons.items()
    }
    return whole.crop((left, top, left + CUTTING, top + CUTTING)), shown(buttons, CUTTING // TOKEN)


def look(student: Student, episodes: Sequence[Episode], progress: Callable[[str], None]) -> None:
    """The first two lessons. A linear reading of each visual token must tell which buttons it shows, and, of whole pictures,
    where they are. Words begin near the middle of a cutting, which is much easier, and end anywhere in it.
    Cuttings go on beside whole pictures, or the words are forgotten again."""
    words, places = torch.nn.Linear(student.hidden, len(WORDS)), torch.nn.Linear(student.hidden, 4 * len(WORDS))
    optimizer = adamw([*student.model.model.visual.parameters(), *words.parameters(), *places.parameters()])
    for step in range(READ_STEPS + LOOK_STEPS):
        reads, slack = step < READ_STEPS, min(TOKEN // 2, 6 + 9 * step // READ_STEPS)
        chosen = student.rng.choices(episodes, k=CUTTINGS if reads else CUTTINGS // 2)
        pictures, there = zip(*(cutting(episode, slack, student.rng) for episode in chosen), strict=True)
        loss = 4 * functional.binary_cross_entropy_with_logits(words(student.see(pictures)), torch.stack(there))
        if not reads:
            whole = student.rng.sample(list(episodes), WHOLE)
            loss = loss + _whole(student, whole, words, places)
        update(optimizer, loss, LOOK_RATE * schedule(step, READ_STEPS + LOOK_STEPS, WARM_UP_STEPS))
        if step % 50 == 49:
            progress(f"look {step + 1} of {READ_STEPS + LOOK_STEPS}: loss {loss.item():.3f}")


def _whole(
    student: Student, episodes: Sequence[Episode], words: torch.nn.Linear, places: torch.nn.Linear
) -> torch.Tensor:
    there = torch.stack([shown(episode.buttons, TOKENS) for episode in episodes])
    boxes = torch.zeros(len(episodes), 1, len(WORDS), 4)
    for row, episode in enumerate(episodes):
        for word, box in episode.buttons.items():
            boxes[row, 0, WORDS.index(word)] = torch.tensor(box)
    seen = student.see([episode.pictures[0] for episode in episodes])
    away = (places(seen).unflatten(-1, (len(WORDS), 4)) - boxes).abs().mean(-1)
    return 4 * functional.binary_cross_entropy_with_logits(words(seen), there) + 4 * (away * there).sum() / there.sum()


def answer(student: Student, episodes: Sequence[Episode], progress: Callable[[str], None]) -> None:
    """The last two lessons, over pictures that the resting vision tower has seen once."""
    student.model.model.visual.requires_grad_(False)
    with torch.no_grad():
        for episode in episodes:
            episode.features = list(student.see(episode.pictures))
    for name, steps, rate, dodged in (
        ("answer", ANSWER_STEPS, ANSWER_RATE, 0.0),
        ("dodge", DODGE_STEPS, DODGE_RATE, DODGED),
    ):
        optimizer = adamw([parameter for parameter in student.model.parameters() if parameter.requires_grad])
        for step in range(steps):
            loss = student.loss(student.rng.sample(list(episodes), BATCH), dodged)
            update(optimizer, loss, rate * schedule(step, steps, WARM_UP_STEPS))
            if step % 50 == 49:
                progress(f"{name} {step + 1} of {steps}: loss {loss.item():.3f}")
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
