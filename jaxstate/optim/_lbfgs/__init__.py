"""L-BFGS: its recursion, its line search, and its one entry in torch's dict."""
