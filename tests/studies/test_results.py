"""The table of finished runs."""

from __future__ import annotations

from pathlib import Path

import pytest
from scipy import stats
from toy import train

from studies import results
from utilities import checkpoint


def test_results_of_seeds_are_one_row_and_states_and_kept_epochs_none(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = [train(tmp_path, "--epochs=2", *more) for more in ([], ["--seed=1"], ["--seed=2"])]
    other = train(tmp_path, "--epochs=2", "--optimizer=SAM", "--keep_epochs=1")
    files = [str(path) for args in (*runs, other) for path in (args.run.best, args.run.last)]
    files += [str(other.run.kept(epoch)) for epoch in (0, 1, 2)]
    capsys.readouterr()
    results.main(files)
    rows = [[c.strip() for c in line.split("|")] for line in capsys.readouterr().out.splitlines()]
    assert [(row[2], row[6]) for row in rows[2:]] == [("ADAM", "3"), ("SAM", "1")]
    found = [checkpoint.load(args.run.best)["metrics"]["val_f1"] for args in runs]
    low, high = stats.t.interval(0.95, 2, stats.tmean(found), stats.sem(found))
    mean, half = (float(word) for word in rows[2][10].split("±"))
    assert mean == pytest.approx((low + high) / 2, abs=0.01)
    assert half == pytest.approx((high - low) / 2, abs=0.01)
    with pytest.raises(ValueError, match="no finished run"):
        results.main([str(other.run.last)])
