"""Options with an argument are read without torch, and wrong names meet the nearest right one."""

from __future__ import annotations

import pytest

from featpipe.errors import UnknownNameError
from featpipe.finetune import grammar


@pytest.mark.parametrize(
    ("read", "wrong", "nearest"),
    [
        (grammar.head, "mpl:50", "mlp"),
        (grammar.schedule, "cosinus", "cosine"),
        (grammar.loss, "tripelt:1", "triplet"),
        (grammar.augmentation, "cutuot:4", "cutout"),
    ],
)
def test_wrong_names_are_refused(read, wrong, nearest):
    with pytest.raises(UnknownNameError, match=f"did you mean '{nearest}'"):
        read(wrong)
