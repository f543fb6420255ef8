"""Many runs and what is learned from them: compare, study and report."""
