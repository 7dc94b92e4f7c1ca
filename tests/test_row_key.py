"""The names of rows in verl's queue."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from vision_rl.training.rows import RowKey


@given(st.builds(RowKey, uid=st.text(min_size=1), rollout=st.integers(0, 999), sample=st.integers(0, 99)))
def test_a_key_is_read_back_whatever_its_group_is_called(key: RowKey) -> None:
    assert RowKey.parse(str(key)) == key and str(key) == f"{key.rollout_key}_{key.sample}"
