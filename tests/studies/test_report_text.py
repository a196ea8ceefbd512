"""The numbers of a report, and the sentences and tables that are made of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from study_runs import OF_SAMPLES, SHARPNESS, rows, write

from studies import report_settings, report_text
from studies.comparisons import ACCURACY, LAMBDA_MAX, Results, flatness_quantities
from studies.report_text import Analysis
from studies.runs_file import read_runs, write_runs
from studies.table import read_study
from utilities.statistics import Estimate, kendall, mean_interval


def analysis(folder: Path, made: list[dict[str, Any]]) -> Analysis:
    table = write(folder, made)
    return Analysis(Results(read_study(table), read_runs(folder / "runs.csv")))


def section(text: str, heading: str) -> str:
    return text.partition(f"## {heading}\n")[2].partition("\n## ")[0]


def test_errors_of_the_samples_are_said_where_they_are_known(tmp_path: Path) -> None:
    made = rows()
    assert report_text.samples_note(analysis(tmp_path, made).results, "MUTAG") == ""
    measured = [row for row in made if row["data"] == "MUTAG" and row["stage"] == "run"]
    for share, row in zip((0.1, 0.2, 0.6), measured, strict=False):
        row[OF_SAMPLES] = share * row["lambda_max"]
    note = report_text.samples_note(analysis(tmp_path, made).results, "MUTAG")
    assert "a standard error of 20% over" in note and "3 of 18 minima" in note


# --- numbers --------------------------------------------------------------------------------------
def test_each_is_compared_at_equal_epochs_and_at_equal_passes(tmp_path: Path) -> None:
    results = analysis(tmp_path, rows()).results
    twice = "ADAM, twice the epochs"
    assert results.partners("MUTAG", "SAM") == {"equal epochs": "ADAM", "equal passes": twice}
    assert results.partners("MUTAG", twice) == {"2 x the epochs": "ADAM"}
    assert results.partners("MUTAG", "ADAM") == {}
    made = rows()
    for row in made:
        row["passes"] = 10 if row["optimizer"] == "SAM" else row["passes"]
    results = analysis(tmp_path, made).results
    assert results.partners("MUTAG", "SAM") == {"equal epochs and passes": "ADAM"}


def test_a_difference_is_of_pairs_with_the_overlap_of_their_folds(tmp_path: Path) -> None:
    made = rows(SAM=2.0)
    done = analysis(tmp_path, made)
    by_key = {(r["data"], r["optimizer"], r["seed"], r["fold"]): r["test_acc"] for r in made}
    # Of 10 folds the other 9 train, but for a tenth of them; the second data set has 5.
    for data, ratio in (("MUTAG", 1 / 8.1), ("A | B <i>", 1 / 3.6)):
        ours = next(c for c in done.of(ACCURACY, data) if c.kind == "equal epochs")
        pairs = [(s, f) for s in (1, 2) for f in (0, 1, 2)]
        differences = [by_key[(data, "SAM", *p)] - by_key[(data, "ADAM", *p)] for p in pairs]
        assert ours.estimate == mean_interval(differences, ratio)
        assert ours.family == 6 and ours.corrected >= ours.estimate.p
    flat = next(c for c in done.of(LAMBDA_MAX, "MUTAG") if c.kind == "equal epochs")
    assert flat.ratio and 0.2 < np.exp(flat.estimate.value) < 0.3


@pytest.mark.parametrize("folds", [20, "20"])
def test_folds_that_set_changed_are_those_of_the_interval(folds: int | str, tmp_path: Path) -> None:
    table = write(tmp_path, rows())
    results = Results(read_study(table, {"folds": folds}), read_runs(tmp_path / "runs.csv"))
    assert results.test_to_train("MUTAG") == pytest.approx(1 / (19 * 0.9))


def test_runs_without_a_partner_are_left_out_and_named(tmp_path: Path) -> None:
    made = [r for r in rows() if (r["optimizer"], r["seed"], r["fold"]) != ("ADAM", 2, 1)]
    done = analysis(tmp_path, made)
    ours = next(c for c in done.of(ACCURACY, "MUTAG") if c.kind == "equal epochs")
    assert ours.estimate.n == 5 and ours.unpaired == ("SAM, seed 2, fold 1",)
    said = report_settings.missing(done.results, done.judged)
    assert "- MUTAG: ADAM 1" in said and "MUTAG, SAM, seed 2, fold 1" in said
    assert "34 of 36 planned runs" in report_settings.completeness(done.results)


def test_values_that_are_not_all_above_zero_are_no_ratio(tmp_path: Path) -> None:
    made = rows()
    made[0]["trace"] = -1.0
    done = analysis(tmp_path, made)
    trace = done.differences["trace"]
    assert {(c.data, c.ratio) for c in trace} == {("MUTAG", False), ("A | B <i>", True)}
    assert "trace (difference)" in report_text.ratios_table(done, "MUTAG")


def test_tau_is_over_all_minima_of_a_data_set(tmp_path: Path) -> None:
    made = rows(["MUTAG"])
    for row in made[:3]:
        row[SHARPNESS] = ""
    done = analysis(tmp_path, made)
    names = [c.quantity.name for c in done.correlations_of("MUTAG")]
    assert names == ["lambda_max", "trace", SHARPNESS]
    last = done.correlations_of("MUTAG")[-1]
    kept = made[3:]
    clusters = [(r["seed"], r["fold"]) for r in kept]
    errors = [100 - r["test_acc"] for r in kept]
    expected = kendall([r[SHARPNESS] for r in kept], errors, clusters)
    assert last.tau.value == pytest.approx(expected.value)
    assert (last.tau.low, last.tau.n) == pytest.approx((expected.low, 15))
    assert set(last.by_axis) == {"optimizer", "seed", "fold"}
    assert last.family == 3


def test_another_studys_runs_and_trials_alone_are_refused(tmp_path: Path) -> None:
    made = rows(["MUTAG"])
    made[0]["optimizer"] = "LION"
    with pytest.raises(ValueError, match="has no optimizer 'LION'"):
        analysis(tmp_path, made)
    with pytest.raises(ValueError, match="no finished run to report on yet"):
        analysis(tmp_path, [{**row, "stage": "trial"} for row in rows(["MUTAG"])[:1]])


# --- text -----------------------------------------------------------------------------------------
def test_the_answers_follow_the_numbers(tmp_path: Path) -> None:
    better = report_text.answers(analysis(tmp_path, rows(SAM=4.0)))
    assert "SAM's test accuracy is better than ADAM's by" in section(better, "Is SAM better?")
    assert section(better, "Is SAM flatter?").count("SAM's minima are flatter than ADAM's") == 2
    worse = report_text.answers(analysis(tmp_path, rows(SAM=-4.0)))
    assert "SAM's test accuracy is worse than ADAM's by" in section(worse, "Is SAM better?")
    same = section(report_text.answers(analysis(tmp_path, rows())), "Is SAM better?")
    assert "better" not in same and "worse" not in same and "can't be told apart" in same


def test_what_validation_chose_by_judges_the_test_too(tmp_path: Path) -> None:
    made = [{**row, "test_f1": 60.0 + row["fold"] + row["seed"] / 10} for row in rows(["MUTAG"])]
    for number, row in enumerate(made):
        row["test_f1"] += (5 if row["optimizer"] == "SAM" else 0) + number % 5 / 10
    write(tmp_path, made)
    table = tmp_path / "small.toml"
    table.write_text(table.read_text("utf-8").replace('"val_acc"', '"val_f1"'), encoding="utf-8")
    done = Analysis(Results(read_study(table), read_runs(tmp_path / "runs.csv")))
    answer = section(report_text.answers(done), "Is SAM better?")
    assert "SAM's test macro F1 is better than ADAM's by" in answer and "accuracy" not in answer
    errors = {error for _, _, error in done.results.minima("MUTAG", LAMBDA_MAX)}
    assert errors == {100 - row["test_f1"] for row in made}
    assert "At equal epochs: SAM's test macro F1" in report_text.in_words(done, "MUTAG")


def test_one_seed_gets_numbers_and_no_verdict(tmp_path: Path) -> None:
    made = [{**r, "fold": ""} for r in rows(["MUTAG"], SAM=9.0) if (r["seed"], r["fold"]) == (1, 0)]
    done = analysis(tmp_path, made)
    text = report_text.answers(done)
    assert "can't be judged beside ADAM's: one run" in text and "95 % interval" not in text
    assert "±" not in report_text.results_table(done.results, "MUTAG")


@pytest.mark.parametrize(("seconds", "shown"), [(1337.2, "1337"), (99.44, "99.4"), (0.5, "0.5")])
def test_seconds_are_plain_numbers(seconds: float, shown: str, tmp_path: Path) -> None:
    made = [{**row, "seconds": seconds} for row in rows(["MUTAG"])]
    results = analysis(tmp_path, made).results
    assert report_text.results_table(results, "MUTAG").count(f"| 7 | {shown} |") == 3


def test_what_was_not_measured_is_said(tmp_path: Path) -> None:
    gone = dict.fromkeys(("lambda_max", "lambda_5", "trace", SHARPNESS), "")
    done = analysis(tmp_path, [{**row, **gone} for row in rows(["MUTAG"])])
    text = report_text.answers(done)
    assert flatness_quantities(done.results.runs) == []
    assert "was measured of no run" in text and "no measure of sharpness yet" in text


def test_a_choice_at_the_edge_is_said(tmp_path: Path) -> None:
    done = analysis(tmp_path, rows())
    assert "0.1 (edge)" in report_settings.settings(done.results)
    assert "0.01 (edge)" not in report_settings.settings(done.results)
    assert "SAM on MUTAG" in report_settings.edges(done.results)
    optimizer = done.results.study.optimizer("SAM")
    assert [report_settings.at_edge(v, optimizer) for v in ("0.02", "0.05", "0.10", "x", "")] == [
        *(True, False, True, False, False)
    ]


def test_a_base_whose_chosen_rate_is_not_the_others_is_said(tmp_path: Path) -> None:
    """SAM trains at the script's default of 0.01."""
    made = rows()
    assert report_settings.rates(analysis(tmp_path, made).results) == ""
    for row in made:
        if row["optimizer"].startswith("ADAM") and row["data"] == "MUTAG":
            row["chosen"] = "learning_rate=0.03"
    assert report_settings.rates(analysis(tmp_path, made).results) == (
        "- On MUTAG, SAM: learning\\_rate 0.01, where ADAM trains at 0.03, so that the "
        "difference to ADAM is of that too."
    )
    for row in made:
        row["chosen"] = "learning_rate=many"
    assert report_settings.rates(analysis(tmp_path, made).results) == ""


def test_what_they_ran_on_is_said_as_recorded(tmp_path: Path) -> None:
    """Of runs that don't say it, as the table does; else that nobody recorded it."""
    made = rows(["MUTAG"])
    table = write(tmp_path, made)
    old = Results(read_study(table), read_runs(tmp_path / "runs.csv"))
    assert report_settings.machines(old) == "They ran on a machine that was not recorded."
    for row in made[:5]:
        row |= {"processor": "EPYC (avx2)", "torch": "2.14", "threads": 2}
    write_runs(tmp_path / "runs.csv", made)
    table.write_text('machine = "a laptop"\n' + table.read_text())
    mixed = Results(read_study(table), read_runs(tmp_path / "runs.csv"))
    said = report_settings.machines(mixed)
    assert said == "Of the runs, 13 on a laptop; 5 on EPYC (avx2), 2 threads, torch 2.14."


def test_large_means_are_plain_numbers() -> None:
    texts = [
        report_text.mean_text(Estimate(value, value - half, value + half, 0.5), None)
        for value, half in ((1894.2, 503.0), (458.3, 87.4), (2.14, 0.34), (0.00142, 0.00035))
    ]
    assert texts == ["1890 ± 500", "458 ± 87", "2.14 ± 0.34", "0.00142 ± 0.00035"]
