"""The table of tasks: its own rows hold together, and a task from a file or a package works like them."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from importlib.metadata import EntryPoint, EntryPoints
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from PIL import Image

from vision_rl import tasks
from vision_rl.config.resolve import render_resolved, resolve
from vision_rl.data.schema import read_rows
from vision_rl.data.verify import verify
from vision_rl.errors import UserError
from vision_rl.evaluation import metrics
from vision_rl.rewards import user as plugins
from vision_rl.rewards.grounding import KINDS
from vision_rl.run.log import RunLog
from vision_rl.run.reader import read_run
from vision_rl.run.summary import summarise
from vision_rl.settings import AgentSettings
from vision_rl.tasks import BUILT_IN, Task, get_task, task_names
from vision_rl.training.finish import changes
from vision_rl.types import Reward

ROOT = Path(__file__).resolve().parents[1]
MINE = """
from vision_rl.types import Reward
from vision_rl.tasks import Task

def score(task, reply):
    return Reward(float(reply == task["answers"][0] + "!"), {"loudness": 1.0})

async def answer(task, llm):
    return "", Reward(0.0)

TASK = Task(
    name="shout", answer=answer, rewards=("loud", "louder"), metric="loudness", score=score,
    gold=lambda task: (task["answers"][0] + SUFFIX, 1.0), defaults={"agent.image_transport": "data"},
)
SUFFIX = "!"
"""


@pytest.fixture(autouse=True)
def forget(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tasks, "_loaded", {})


@pytest.fixture()
def mine(tmp_path: Path) -> Path:
    (tmp_path / "shout.py").write_text(MINE)
    return tmp_path / "shout.py"


@pytest.mark.parametrize("name", BUILT_IN)
def test_every_reference_of_the_table_can_be_imported(name: str) -> None:
    task = get_task(name)
    for field in dataclasses.fields(Task):
        task.part(field.name)
    assert metrics.measures(task.name).keys() >= set(metrics.headline(task.name))
    assert task.prompt and "{" in task.part("prompt")


def test_the_table_names_the_rewards_that_exist() -> None:
    assert get_task("grounding").rewards == KINDS


def test_a_name_costs_no_import_of_what_only_a_rollout_needs() -> None:
    check = "import sys; from vision_rl.tasks import get_task; get_task('vqa').rewards\n"
    check += "print(sorted({'openai', 'httpx', 'scipy', 'torch', 'transformers', 'agentlightning'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", check], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ("groundin", "did you mean grounding?"),
        ("ocr", "there are vqa, grounding"),
        ("nowhere/my_task.py", "does not exist"),
        ("empty.py", "defines no TASK"),
        ("broken.py", "does not load (ZeroDivisionError"),
        ("taken.py", "calls its task 'vqa'"),
        ("truth.py", "truth='colours'"),
    ],
)
def test_what_is_no_task_is_refused_in_one_sentence(spec: str, said: str, tmp_path: Path) -> None:
    imports = "from vision_rl.tasks import Task\n"
    (tmp_path / "empty.py").write_text("TASK = 1\n")
    (tmp_path / "broken.py").write_text("1 / 0\n")
    (tmp_path / "taken.py").write_text(imports + "TASK = Task(name='vqa', answer='x:y')\n")
    (tmp_path / "truth.py").write_text(imports + "TASK = Task(name='x', answer='x:y', truth='colours')\n")
    with pytest.raises(UserError) as refused:
        get_task(str(tmp_path / spec) if spec.endswith(".py") else spec)
    assert said in str(refused.value) and "\n" not in str(refused.value)


def test_a_file_is_loaded_once_and_known_by_its_name(mine: Path) -> None:
    task = get_task(str(mine))
    assert get_task(str(mine)) is task and get_task("shout") is task
    assert task.spec == str(mine) and task_names() == ["vqa", "grounding", "shout"]
    mine.with_name("other.py").write_text(MINE)
    with pytest.raises(UserError, match="rename one of them"):
        get_task(str(mine.with_name("other.py")))


def test_an_installed_package_adds_a_task(monkeypatch: pytest.MonkeyPatch) -> None:
    point = EntryPoint("packaged", "vision_rl_test_package:TASK", tasks.ENTRY_POINTS)
    broken = EntryPoint("broken", "vision_rl_no_such_package:TASK", tasks.ENTRY_POINTS)
    module = type(sys)("vision_rl_test_package")
    module.TASK = Task(name="packaged", answer="vqa_agent:answer")  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setattr(tasks, "entry_points", lambda group: EntryPoints([point, broken]).select(group=group))
    assert get_task("packaged").name == "packaged" and "packaged" in task_names()
    with pytest.raises(UserError, match="broken: vision_rl_no_such_package:TASK does not load"):
        get_task("broken")


def rows_file(folder: Path, **columns: Any) -> Path:
    Image.new("RGB", (20, 20), "red").save(folder / "a.png")
    row = {"id": "1", "image_path": "a.png", "question": "What?", **columns}
    pd.DataFrame([row]).to_parquet(folder / "rows.parquet")
    return folder / "rows.parquet"


def test_rows_that_name_no_task_are_of_the_one_that_was_asked_for(mine: Path, tmp_path: Path) -> None:
    name = get_task(str(mine)).name
    path = rows_file(tmp_path, answer="hey", boxes=[])
    assert read_rows(path, task=name)[0]["task"] == "shout"
    with pytest.raises(UserError, match="grounding row has answers"):  # an empty list of boxes says "no finding"
        read_rows(path)
    with pytest.raises(UserError, match="holds rows of task vqa, none of 'grounding'"):
        read_rows(rows_file(tmp_path, answer="hey"), task="grounding")
    with pytest.raises(UserError, match="shout row has boxes"):
        read_rows(rows_file(tmp_path, task="shout", boxes=[[0.0, 0.0, 1.0, 1.0]]))


def test_files_of_one_name_in_two_folders_are_two_modules_and_import_what_lies_beside_them(tmp_path: Path) -> None:
    for folder, suffix in (("one", "!"), ("two", "?")):
        (tmp_path / folder).mkdir()
        own = MINE.replace('"shout"', f'"{folder}"').replace('SUFFIX = "!"', "from .suffix import SUFFIX")
        (tmp_path / folder / "task.py").write_text(own)
        (tmp_path / folder / "suffix.py").write_text(f"SUFFIX = {suffix!r}")
    both = [get_task(str(tmp_path / folder / "task.py")) for folder in ("one", "two")]
    assert [task.part("gold")({"answers": ["hey"]})[0] for task in both] == ["hey!", "hey?"]
    assert all(sys.modules[task.part("gold").__module__].TASK.name == task.name for task in both), "for pickle"


def test_verify_scores_the_gold_answer_by_the_tasks_own_rule(
    mine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name, path = get_task(str(mine)).name, rows_file(tmp_path, task="shout", answer="hey")
    assert verify(path).problems == []
    monkeypatch.setitem(get_task(name).part("gold").__globals__, "SUFFIX", "?")
    [problem] = verify(path).problems
    assert "its gold answer 'hey?' scores 0 instead of 1" in problem.reason
    tasks._loaded[name] = dataclasses.replace(get_task(name), gold=None)
    assert verify(path).notes == ["gold answers of shout were not scored: its task has no gold or score"]


def recorded(folder: Path, **wanted: Any) -> Path:
    (folder / "config.yaml").write_text(render_resolved(resolve("cpu", **wanted)))
    return folder


def test_a_run_keeps_its_task_and_is_read_without_the_tasks_file(mine: Path, tmp_path: Path) -> None:
    run = read_run(recorded(tmp_path, task=str(mine), model=tiny()))
    assert run.settings.reward == "loud" and run.settings.image_transport == "data"
    mine.unlink()
    tasks._loaded.clear()
    assert (run.task, run.truth, run.metric) == ("shout", "answers", "loudness")


def test_resume_knows_the_task(mine: Path, tmp_path: Path) -> None:
    run = read_run(recorded(tmp_path, task=str(mine), model=tiny()))
    assert changes(run, resolve("cpu", task="shout", model=tiny())) == []
    with pytest.raises(UserError, match="holds a run of --task shout, not vqa"):
        changes(run, resolve("cpu", task="vqa", model=tiny()))


def test_the_summary_judges_by_the_tasks_metric(mine: Path, tmp_path: Path) -> None:
    log = RunLog(tmp_path)
    log.metrics(0, {"val/loudness": 0.25})
    assert summarise(tmp_path, [get_task(str(mine)).name], 0.0)["val_before"] == 0.25


def test_figures_of_a_task_without_measures_are_its_metric_reward_and_format(mine: Path) -> None:
    record = {
        "task": get_task(str(mine)).name, "failure": "", "answers": ["hey"], "image_paths": ["a"], "meta": {},
        "source": "test", "components": {"loudness": 0.5, "format/ok": 1.0}, "reward": 0.25,
    }  # fmt: skip
    figures = {name: figure["value"] for name, figure in metrics.overall("shout", [record]).items()}
    assert figures == {"loudness": 0.5, "reward": 0.25, "format ok": 1.0}
    assert metrics.headline("shout") == ("loudness",)


def tiny() -> Path:
    from vision_rl.tiny import checkpoint_dir

    return checkpoint_dir()


# The user's own reward and advantage estimator


@pytest.fixture()
def my_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "vision_rl_test_mine.py").write_text(
        "from vision_rl.types import Reward\n"
        "def brief(reply, row): return 1 / len(reply)\n"
        "def parts(reply, row): return Reward(2.0, {'accuracy': 0.5, 'mine': 3.0})\n"
        "def endless(reply, row): return float('inf')\n"
        "NUMBER = 1\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "vision_rl_test_mine", raising=False)
    return "vision_rl_test_mine"


@pytest.mark.parametrize(("task", "metric"), [("vqa", "accuracy"), ("grounding", "iou")])
def test_a_reward_of_the_users_own_trains_and_the_tasks_metric_stays(task: str, metric: str, my_module: str) -> None:
    settings = {**dataclasses.asdict(AgentSettings()), "reward": f"{my_module}:brief"}
    row = {
        "answers": ["red"], "boxes": [[0.0, 0.0, 1.0, 1.0]], "image_sizes": [[20, 20]], "settings": settings,
    }  # fmt: skip
    reply = {"vqa": "red", "grounding": "<bbox>[0, 0, 1, 1]</bbox>"}[task]
    reward = get_task(task).part("score")(row, reply)
    assert reward.value == pytest.approx(1 / len(reply)) and reward.components[metric] == 1.0


def test_components_of_the_users_own_are_kept(my_module: str) -> None:
    scored = plugins.or_the_users("vqa")(lambda task, reply: Reward(1.0, {"accuracy": 1.0, "length": 1.0}))
    reward = scored({"settings": {"reward": f"{my_module}:parts"}}, "x")
    assert reward == Reward(2.0, {"accuracy": 0.5, "length": 1.0, "mine": 3.0})
    with pytest.raises(ValueError, match="finite"):
        scored({"settings": {"reward": f"{my_module}:endless"}}, "x")


@pytest.mark.parametrize(
    ("reward", "said"),
    [
        ("vision_rl_test_mine:brief", ""),
        ("vision_rl_test_mine:missing", "cannot be imported"),
        ("vision_rl_no_such_module:brief", "PYTHONPATH"),
        ("vision_rl_test_mine:NUMBER", "is no function of"),
        ("loud", "module:function for one of your own"),
    ],
)
def test_a_reward_is_one_of_the_tasks_or_an_importable_function(reward: str, said: str, my_module: str) -> None:
    if not said:
        assert resolve("cpu", [f"agent.reward='{reward}'"], task="vqa", model=tiny()).agent.reward == reward
        return
    with pytest.raises(UserError, match=said):
        resolve("cpu", [f"agent.reward='{reward}'"], task="vqa", model=tiny())


def test_an_estimator_of_the_users_own_needs_a_module_that_registers_it(my_module: str) -> None:
    wanted = ["algorithm.adv_estimator=mine"]
    with pytest.raises(UserError, match=r"app\.imports=\[its_module\]"):
        resolve("cpu", wanted, task="vqa", model=tiny())
    resolved = resolve("cpu", [*wanted, f"app.imports=[{my_module}]"], task="vqa", model=tiny())
    assert resolved.verl["algorithm"]["adv_estimator"] == "mine" and resolved.app.imports == [my_module]
    plugins.import_user_modules(resolved.app.imports)
    assert my_module in sys.modules
    with pytest.raises(UserError, match=r"app\.imports: vision_rl_no_such_module cannot be imported"):
        plugins.import_user_modules(["vision_rl_no_such_module"])


def test_verls_registry_is_asked_for_the_estimator() -> None:
    from verl.trainer.ppo.core_algos import ADV_ESTIMATOR_REGISTRY, register_adv_est

    plugins.check_estimator("grpo")
    with pytest.raises(UserError, match='register_adv_est\\("mine_too"\\)'):
        plugins.check_estimator("mine_too")
    register_adv_est("mine_too")(lambda **kwargs: None)
    try:
        plugins.check_estimator("mine_too")
    finally:
        del ADV_ESTIMATOR_REGISTRY["mine_too"]
