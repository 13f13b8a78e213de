"""The five scores that stand for a model, in every table, picture and log."""

HEADLINE = {
    "task_aggregate": "Task Aggregate",
    "membership_auc": "Membership AUC",
    "membership_score": "Membership score",
    "mmlu": "MMLU",
    "aggregate": "Aggregate",
}
"""Key in `results.json` -> name in a table. All are in [0, 1] and better the higher, but for the AUC, which is best at
one half; None where the data for a score was not given."""
