"""What other harnesses take from here: this folder is an `--include_path` of lm-evaluation-harness."""
