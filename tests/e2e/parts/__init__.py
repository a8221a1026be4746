"""The parts of the proof. Each has `run(trial)`, which makes its checks through `trial.report`."""
