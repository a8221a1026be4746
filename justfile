# What continuous integration runs, all of it.
check:
    .ci/run

# One or more of its steps: just step fmt clippy
step +names:
    .ci/run {{names}}

# Loops and scale, in parts of at most 45 minutes; `just long --list` names them.
long *parts:
    .ci/long {{parts}}

# The end-to-end proof alone: just e2e --part sqlite
e2e *words: build-for-e2e
    python3 tests/e2e/run.py {{words}}

build-for-e2e:
    .ci/build-for-e2e

# Watch it work.
demo:
    cargo run --release -- demo

# Compare speed with other tools.
bench *words:
    cargo run --release -p stillframe-bench -- {{words}}
