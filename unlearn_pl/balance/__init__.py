"""The search for the merge that balances forgetting: membership AUC of one half."""
