"""A training that is killed and run again."""

import pytest

from training import common


def killed_and_resumed(train, monkeypatch, folder):
    """Run a training of eight steps, with an empty cache, kill it at its seventh step and run it again.

    Its state is kept every four steps.  Returns the number of each step that both runs take.
    """
    check, steps = common.check_loss, []

    def check_and_kill(losses, *rest):
        steps.append(len(losses))
        if len(steps) == 7:
            raise KeyboardInterrupt
        check(losses, *rest)

    monkeypatch.setenv("PG_CACHE", str(folder / "empty cache"))
    monkeypatch.setattr(common, "SAVE_EVERY", 4)
    monkeypatch.setattr(common, "check_loss", check_and_kill)
    with pytest.raises(KeyboardInterrupt):
        train()
    train()
    return steps
