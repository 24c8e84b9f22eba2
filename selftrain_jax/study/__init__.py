"""Many runs as one experiment: sources x students at one budget, with controls, proxies and verdicts."""
